"""Models from a Hub on the loopback address, which answers as the real one does to the Hub's own client."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from helpers import records

SHA = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"# A model\n"}
MODELS = {
    "openai/clip-vit-base-patch32": {
        **CONFIG,
        "model.safetensors": b"safe" * 1000,
        "pytorch_model.bin": b"pickle" * 10,
        "tf_model.h5": b"keras",
        "onnx/model.onnx": b"onnx",
    },
    "old/pickled": {**CONFIG, "pytorch_model.bin": b"pickle" * 1000},
}
DOWNLOADS = {"openai/clip-vit-base-patch32": 5000, "old/pickled": 10}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if refusal := getattr(self.server, "refusal", None):
            return self.send(*refusal)
        if path.rstrip("/") == "/api/models":
            asked = parse_qs(urlsplit(self.path).query)
            self.server.asked.append(asked)  # type: ignore[attr-defined]
            return self.send([info(name) for name in MODELS if asked.get("search", [""])[0] in name])
        if path.startswith("/api/models/"):
            repo = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            if repo not in MODELS:
                return self.send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return self.send(tree(repo) if f"{repo}/tree/" in path else info(repo))
        repo, _, rest = path.strip("/").partition("/resolve/")
        file = rest.partition("/")[2]
        data = MODELS.get(repo, {}).get(file)
        if data is None:
            return self.send({}, 404, {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.server.hits[file] += 1  # type: ignore[attr-defined]
        self.send(data, 200, {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def send(self, body: object, code: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def info(name: str) -> dict:
    files = [{"rfilename": file, "size": len(data)} for file, data in MODELS[name].items()]
    said = {"pipeline_tag": "zero-shot-image-classification", "library_name": "transformers", "likes": 3}
    tags = ["transformers", "license:mit"]
    card = {"license": "mit", "language": ["en"]}
    facts = {"cardData": card, "downloads": DOWNLOADS[name], "lastModified": "2024-02-29T09:45:55.000Z", "gated": False}
    return {"_id": "1", "id": name, "sha": SHA, "private": False, "siblings": files, "tags": tags, **said, **facts}


def tree(name: str) -> list[dict]:
    return [{"type": "file", "path": file, "size": len(data), "oid": "0" * 40} for file, data in MODELS[name].items()]


@pytest.fixture
def hub(environment: dict[str, str], tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    for name in [name for name in environment if name.lower().endswith("_proxy") or name.startswith("HF_")]:
        del environment[name]
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.hits, server.asked = Counter(), []  # type: ignore[attr-defined]
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.slow
def test_safetensors_alone_and_once(vlmkit, hub) -> None:
    first = vlmkit("download", "clip-b32")
    folder = Path(first.stdout.decode().rstrip("\n"))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "tokenizer.json", "README.md", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"safe" * 1000 and b"licence: mit" in first.stderr
    hits = hub.hits.copy()
    (again,) = records(vlmkit("download", "clip-b32", "--json").stdout)
    assert again["path"] == str(folder) and again["revision"] == SHA and hub.hits == hits
    (folder / "model.safetensors").resolve().write_bytes(b"evil" * 1000)
    assert b"model.safetensors: wrong SHA-256" in vlmkit("download", "clip-b32", "--verify", code=3).stderr


@pytest.mark.slow
def test_a_pickle_needs_to_be_allowed(vlmkit, tmp_path: Path, hub) -> None:
    refused = vlmkit("download", "old/pickled", code=2)
    assert b"--allow-pickle" in refused.stderr.splitlines()[-1] and hub.hits["pytorch_model.bin"] == 0
    reported = vlmkit("download", "old/pickled", "--allow-pickle", "-o", "mine").stdout
    assert Path(reported.decode().rstrip("\n")) == tmp_path / "mine"
    assert (tmp_path / "mine/pytorch_model.bin").read_bytes() == b"pickle" * 1000
    unknown = vlmkit("download", "no/such", code=2).stderr
    assert b"model no/such does not exist" in unknown and unknown.count(b"\n") == 1


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(401, b"hf auth login, or unset HF_TOKEN"), (403, b"check the rights of your token"), (400, b"try again later")],
)
@pytest.mark.parametrize("command", [["download", "openai/clip-vit-base-patch32"], ["embed", "--text", "-m", "a/b"]])
def test_what_the_hub_refuses_is_said_as_it_is(vlmkit, hub, command: list[str], code: int, remedy: bytes) -> None:
    reason = "Invalid credentials in the header. " + "The first of many sentences, each of which is whole. " * 9
    hub.refusal = {"error": reason}, code, {"X-Error-Message": reason}
    (line,) = vlmkit(*command, code=2, stdin=b"a cat").stderr.splitlines()
    assert b"HTTP %d: Invalid credentials in the header." % code in line and line.endswith(remedy)
    assert b"cannot be reached" not in line and b"each of which is whole):" in line


@pytest.mark.slow
def test_search_and_card(vlmkit, hub) -> None:
    options = ["--task", "zero-shot-image-classification", "--licence", "mit", "--min-downloads", "100"]
    (found,) = records(vlmkit("download", "--search", "", *options, "--max-size", "1B", "--library", "x").stdout)
    assert (found["name"], found["licence"], found["downloads"]) == ("openai/clip-vit-base-patch32", "mit", 5000)
    asked = hub.asked[-1]
    assert asked["filter"] == ["license:mit", "x"] and asked["num_parameters"] == ["max:1B"]
    assert asked["pipeline_tag"] == [options[1]] and asked["sort"] == ["downloads"]
    (card,) = records(vlmkit("download", "--card", "clip-b32").stdout)
    sizes = sum(map(len, MODELS[card["name"]].values()))
    assert (card["alias"], card["bytes"], card["licence"], card["language"]) == ("clip-b32", sizes, "mit", ["en"])


@pytest.mark.slow
def test_off_line_the_list_answers(vlmkit, environment: dict[str, str], hub) -> None:
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    done = vlmkit("download", "--search", "clip TOWERS")
    assert [row["name"] for row in records(done.stdout)] == ["clip-b32"] and b"results come from --list" in done.stderr
    done = vlmkit("download", "--search", "shape", "--licence", "mit", "--max-size", "1B", "--task", "x")
    assert [row["name"] for row in records(done.stdout)] == ["easy-vqa"]
    assert b"from --list, which ignores --task, --max-size" in done.stderr
    assert len(records(vlmkit("download", "--search", "", "--limit", "2").stdout)) == 2
    assert vlmkit("download", "--search", "no such words", code=1).stdout == b""
    assert records(vlmkit("download", "--card", "clip-b32").stdout)[0]["bytes"] is None
    failed = vlmkit("download", "clip-b32", code=2).stderr
    assert b"the Hub cannot be reached" in failed and failed.count(b"\n") == 1
