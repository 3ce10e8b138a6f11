"""Pictures by URL, from servers in this process that behave as servers do, and as they should not."""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import jpeg, jsonl, records

PICTURE = jpeg("green", (64, 48))
MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"
MIB = 1 << 20


class Handler(BaseHTTPRequestHandler):
    """`/name` does what the method `name` says; `server.hits` counts what was asked for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.strip("/").split("?")[0].partition(".")[0]
        self.server.hits[name] += 1  # type: ignore[attr-defined]
        try:
            getattr(self, name)()
        except (BrokenPipeError, ConnectionResetError):  # the client had enough
            self.close_connection = True

    def reply(self, body: bytes = PICTURE, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for header, value in {"Content_Type": "image/jpeg", "Content_Length": str(len(body)), **headers}.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def tries(self) -> int:
        return self.server.hits[self.path.strip("/").partition(".")[0]]  # type: ignore[attr-defined]

    def good(self) -> None:
        self.reply(Last_Modified=MODIFIED)

    def undated(self) -> None:
        self.reply(Last_Modified="yesterday", Content_Type="text/html")

    def html(self) -> None:
        self.reply(b"<!DOCTYPE html><title>not found</title>")

    def missing(self) -> None:
        self.reply(b"", 404)

    def empty(self) -> None:
        self.reply(b"")

    def busy(self) -> None:
        self.reply(code=200 if self.tries() > 1 else 429, Retry_After="1")

    def dated(self) -> None:
        """Busy until a moment, as an HTTP date."""
        asked = self.server.asked  # type: ignore[attr-defined]
        asked.append(time.time())
        self.reply(code=200 if len(asked) > 1 else 503, Retry_After=formatdate(asked[0] + 2, usegmt=True))

    def down(self) -> None:
        self.reply(b"", 503)

    def reset(self) -> None:
        if self.tries() > 2:
            self.reply()
        self.close_connection = True

    def cut(self) -> None:
        self.reply(PICTURE[:100], Content_Length=str(len(PICTURE)))
        self.close_connection = True

    def announces(self) -> None:
        self.reply(Content_Length=str(65 * MIB))
        self.close_connection = True

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(PICTURE + bytes(MIB))

    def packed(self) -> None:
        self.reply(Content_Encoding="gzip")

    def stalls(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE[:50])
        self.wfile.flush()
        self.server.over.wait(60)  # type: ignore[attr-defined]
        self.close_connection = True

    def drips(self) -> None:
        """A header that never ends, a byte now and then."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.server.over.wait(0.05):  # type: ignore[attr-defined]
            self.wfile.write(b"x")
        self.close_connection = True

    def moved(self) -> None:
        self.reply(bytes(100), 302, Location="/good.jpg")

    def circle(self) -> None:
        self.reply(b"", 302, Location="/circle.jpg")

    def to_file(self) -> None:
        self.reply(b"", 302, Location="file:///etc/passwd")

    def counts(self) -> None:
        self.reply(json.dumps(self.server.hits).encode())  # type: ignore[attr-defined]

    def parrot(self) -> None:
        """Sets a cookie, and fails if it comes back."""
        self.reply(code=400 if self.headers["Cookie"] else 200, Set_Cookie="a=b")


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def __init__(self) -> None:
            super().__init__(("127.0.0.1", 0), Handler)
            self.hits: Counter[str] = Counter()
            self.over = threading.Event()
            self.asked: list[float] = []

        def handle_error(self, request: object, client_address: object) -> None:
            """Silent where a client has hung up, which it does on an endless or too large body."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.over.set()
        serving.shutdown()
        thread.join()


@pytest.fixture
def site(server: ThreadingHTTPServer, environment: dict[str, str]) -> str:
    for name in [name for name in environment if name.lower().endswith("_proxy")]:
        del environment[name]
    server.hits.clear()  # type: ignore[attr-defined]
    return f"http://127.0.0.1:{server.server_port}"


GOOD = ["good", "undated", "busy", "reset", "moved"]
BAD = {
    "html": "web page",
    "missing": "HTTP 404",
    "empty": "sent nothing",
    "down": "HTTP 503",
    "cut": "without sending complete message body",
    "announces": "larger than 64 MiB",
    "endless": "larger than 64 MiB",
    "packed": "gzip",
    "stalls": "too slow",
    "circle": "redirects",
    "to_file": "not a valid URL",
}


@pytest.mark.slow
def test_servers_of_every_kind(vlmkit, tmp_path, server, site: str) -> None:
    """In one run, so that they are fetched at the same time; the order is kept, each failure has its reason."""
    names = [name for pair in zip(GOOD, BAD, strict=False) for name in pair] + list(BAD)[len(GOOD) :]
    urls = "".join(f"{site}/{name}.jpg\n" for name in names).encode()
    start = time.monotonic()
    done = vlmkit("embed", "--allow-private", "--errors", "bad.jsonl", code=3, stdin=urls)
    assert time.monotonic() - start < 60
    rows = records(done.stdout)
    assert [row["id"] for row in rows] == [f"{site}/{name}.jpg" for name in names if name in GOOD]
    assert all(row["image"] == row["id"] and row["bytes"] == len(PICTURE) for row in rows)
    assert [row.get("mtime") for row in rows] == [1445412480.0 if n in ("good", "moved") else None for n in GOOD]
    errors = {row["id"].rsplit("/", 1)[1].removesuffix(".jpg"): row["error"] for row in records(_read(tmp_path))}
    assert errors.keys() == BAD.keys()
    assert {name: errors[name] for name in BAD if BAD[name] not in errors[name]} == {}
    assert server.hits["down"] == server.hits["reset"] == server.hits["cut"] == 3
    assert server.hits["missing"] == 1 and server.hits["circle"] == 6


def _read(folder) -> bytes:
    return (folder / "bad.jsonl").read_bytes()


def test_arguments_and_records(vlmkit, site: str) -> None:
    (by_name,) = records(vlmkit("embed", "--allow-private", f"{site}/good.jpg").stdout)
    rows = jsonl({"id": "mine", "image": f"{site}/good.jpg", "kept": [1]}, {"text": "a word"})
    by_record, text = records(vlmkit("embed", "--allow-private", stdin=rows).stdout)
    assert by_record == by_name | {"id": "mine", "kept": [1]} and text["text"] == "a word"
    (sorted_in,) = records(vlmkit("classify", "--allow-private", f"{site}/good.jpg", "--labels", "a,b").stdout)
    assert sorted_in["label"] in ("a", "b")


def test_a_picture_on_the_web_in_a_conversation(
    vlmkit, environment: dict[str, str], server, site: str, talking: Path, tmp_path: Path
) -> None:
    environment["VLMKIT_CHAT_MODEL"] = str(talking / "packed")
    (tmp_path / "same.png").write_bytes(PICTURE)
    said = f"/image {site}/good.jpg\nwhat is it?\n"
    done = vlmkit("ask", "--chat", "--allow-private", stdin=said.encode())
    assert done.stdout == vlmkit("ask", "same.png", "what is it?").stdout and done.stderr == b""
    assert server.hits["good"] == 1
    done = vlmkit("ask", "--chat", stdin=said.encode())
    assert server.hits["good"] == 1 and b"--allow-private" in done.stderr


def test_search_by_a_picture_on_the_web(vlmkit, server, site: str) -> None:
    vlmkit("index", stdin=vlmkit("embed", "--allow-private", f"{site}/good.jpg").stdout)
    (hit,) = records(vlmkit("search", "--allow-private", "--image", f"{site}/good.jpg").stdout)
    assert hit["image"] == f"{site}/good.jpg"
    assert hit["score"] > 0.999
    refused = vlmkit("search", "--image", f"{site}/good.jpg", code=2).stderr
    assert refused.count(b"\n") == 1
    assert b"--allow-private" in refused


def test_a_private_address_is_never_contacted(vlmkit, server, site: str) -> None:
    port = server.server_port
    hosts = ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"]
    done = vlmkit("embed", *(f"http://{host}:{port}/good.jpg" for host in hosts), code=3)
    assert done.stdout == b"" and server.hits.total() == 0
    assert done.stderr.count(b"; --allow-private allows it") == len(hosts)


def test_a_proxy_does_not_open_the_way_to_private_addresses(vlmkit, environment, server, site: str) -> None:
    environment["http_proxy"] = site
    vlmkit("embed", f"{site}/good.jpg", "http://10.0.0.1/good.jpg", code=3)
    assert server.hits.total() == 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    from vlmkit.io.transport import is_public

    assert is_public(address) is public


def test_the_address_connected_to_is_the_one_checked(monkeypatch: pytest.MonkeyPatch, server, site: str) -> None:
    """A name server that first says public, then private: the name is looked up once, and that answer is used."""
    import socket

    from vlmkit.io.http import HttpClient
    from vlmkit.io.sources import PictureError

    answers = [["192.0.2.1", "127.0.0.1"], ["127.0.0.1"]]

    def lookup(host: str, port: int, *_: object, **__: object) -> list:
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with HttpClient() as client, pytest.raises(PictureError, match="which is not public"):
        client.fetch(f"http://rebinding.example:{server.server_port}/good.jpg")
    assert server.hits.total() == 0


def test_no_server_can_stretch_the_time(site: str) -> None:
    from vlmkit.io.http import HttpClient
    from vlmkit.io.sources import PictureError

    start = time.monotonic()
    with HttpClient(allow_private=True, total_seconds=1.0) as client, pytest.raises(PictureError, match="too slow"):
        client.fetch(f"{site}/drips.jpg")
    assert time.monotonic() - start < 5


def test_a_pause_may_be_asked_for_by_a_date(site: str, server) -> None:
    from vlmkit.io.http import HttpClient

    with HttpClient(allow_private=True) as client:
        assert client.fetch(f"{site}/dated.jpg").read() == PICTURE
    first, second = server.asked
    assert 1 <= second - first < 4  # dates have no fractions of a second


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 1.5 "}, 1.5),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT", "Date": "Fri, 31 Dec 1999 23:59:29 GMT"}, 30),
        ({"Retry-After": "Friday, 31-Dec-99 23:59:59 GMT", "Date": "Fri, 31 Dec 1999 23:59:29 GMT"}, 30),
        ({"Retry-After": "Fri Dec 31 23:59:59 1999", "Date": "Fri, 31 Dec 1999 23:59:29 GMT"}, 30),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "-3"}, 0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"RateLimit": '"api";r=0;t=58', "RateLimit-Policy": '"api";q=500;w=300'}, 58),
        ({"RateLimit": '"api";r=3;t=58'}, 0),
        ({"RateLimit-Reset": "12"}, 12),
        ({"X-RateLimit-Reset": "1700000030", "Date": "Tue, 14 Nov 2023 22:13:20 GMT"}, 30),
        ({"X-RateLimit-Reset": "1700000030000", "Date": "Tue, 14 Nov 2023 22:13:20 GMT"}, 30),
        ({"Retry-After": "3", "X-RateLimit-Reset": "90"}, 3),
        ({}, 0),
    ],
)
def test_the_pause_that_a_server_asks_for(headers: dict[str, str], seconds: float) -> None:
    from httpx2 import Headers

    from vlmkit.io.http import pause_asked

    assert pause_asked(Headers(headers)) == pytest.approx(seconds, abs=0.01)


def test_no_cookies_are_kept(vlmkit, site: str) -> None:
    urls = "".join(f"{site}/parrot.jpg?{i}\n" for i in range(40)).encode()
    assert len(records(vlmkit("embed", "--allow-private", stdin=urls).stdout)) == 40


def test_changed_does_not_fetch_again(vlmkit, server, site: str) -> None:
    url = f"{site}/good.jpg"
    vlmkit("index", "-i", "./web", stdin=vlmkit("embed", "--allow-private", url).stdout)
    server.hits.clear()
    assert vlmkit("embed", "--allow-private", "--changed", "./web", url).stdout == b""
    assert server.hits.total() == 0


def test_an_interrupt_does_not_wait_for_a_server(environment, tmp_path, site: str) -> None:
    import signal
    import subprocess

    from conftest import SCRIPT

    command = [SCRIPT, "embed", "--allow-private", f"{site}/stalls.jpg", "-o", "out.jsonl"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not _asked(site) and time.monotonic() < deadline:
            time.sleep(0.05)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert time.monotonic() - start < 6
        assert process.stderr is not None and b"Traceback" not in process.stderr.read()
    assert not any(p.name.startswith(".out") or p.name == "out.jsonl" for p in tmp_path.iterdir())


def _asked(site: str) -> bool:
    import urllib.request

    with urllib.request.urlopen(f"{site}/counts") as reply:
        return json.load(reply).get("stalls", 0) > 0
