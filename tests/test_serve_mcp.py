"""serve --mcp: an assistant's own client speaks with it."""

import base64
import io
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import inside
import pytest
from conftest import own_environment
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from PIL import Image

HEAVY = ("torch", "onnxruntime", "faiss", "transformers", "open_clip")


@pytest.fixture(scope="module")
def asked(photo_rows: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a session with an assistant gave, by name, and what the command said on standard error."""
    folder = tmp_path_factory.mktemp("mcp")
    environment = own_environment(folder / "home")
    inside.run(["index"], folder, environment, photo_rows)
    found: dict[str, Any] = {}

    async def session(client: ClientSession) -> None:
        found["hello"] = await client.initialize()
        found["tools"] = (await client.list_tools()).tools
        hits = found["search"] = await client.call_tool("search", {"query": "a cup of coffee", "k": 3})
        first = next(record for record in hits.structured_content["data"] if "coffee" in record["image"])
        found["like"] = await client.call_tool("search", {"like": [first["id"]], "k": 2, "thumbnails": False})
        found["where"] = await client.call_tool("search", {"query": "a", "where": ["image~*coffee*"]})
        found["look"] = await client.call_tool("look", {"id": first["id"]})
        found["ask"] = await client.call_tool("ask", {"question": "what is on the table?", "ids": [first["id"]]})
        for name, tool, arguments in (
            ("empty", "search", {}),
            ("unknown", "look", {"id": "/etc/passwd"}),
            ("elsewhere", "ask", {"question": "what?", "ids": ["/etc/hostname"]}),
            ("no model", "ask", {"question": "what?", "ids": [first["id"]], "model": "nonesuch"}),
            ("too many", "search", {"query": "a", "k": 1000}),
        ):
            found[name] = await client.call_tool(tool, arguments)

    found["said"] = _speak(folder, environment, session)
    return found


def _speak(
    folder: Path, environment: dict[str, str], session: Callable[[ClientSession], Awaitable[None]], *options: str
) -> str:
    words = ["-m", "vlmkit", "serve", "--mcp", *options]
    server = StdioServerParameters(command=sys.executable, args=words, env=environment, cwd=folder)

    async def run() -> None:
        with open(folder / "said", "w") as said:
            async with stdio_client(server, errlog=said) as streams, ClientSession(*streams) as client:
                await session(client)

    anyio.run(run)
    return (folder / "said").read_text()


def text_of(result: Any) -> str:
    return " ".join(part.text for part in result.content if part.type == "text")


def picture_of(part: Any) -> Image.Image:
    assert part.mime_type == "image/jpeg"
    return Image.open(io.BytesIO(base64.b64decode(part.data)))


def test_the_tools_only_read(asked: dict[str, Any]) -> None:
    assert asked["hello"].server_info.name == "vlmkit" and "search finds" in asked["hello"].instructions
    assert [tool.name for tool in asked["tools"]] == ["search", "look", "ask"]
    for tool in asked["tools"]:
        assert tool.annotations.read_only_hint and tool.description and tool.input_schema["properties"]
    assert asked["said"].count("\n") == 1 and "answering an assistant" in asked["said"]


def test_search_gives_paths_and_thumbnails(asked: dict[str, Any], photos: Path) -> None:
    hits = asked["search"]
    records = hits.structured_content["data"]
    first = next(record["id"] for record in records if "coffee" in record["image"])
    assert str(photos / "coffee.png") in [record["image"] for record in records] and len(records) == 3
    assert str(photos / "coffee.png") in text_of(hits)  # for clients that read the text alone
    shown = [picture_of(part) for part in hits.content if part.type == "image"]
    assert len(shown) == 3 and all(min(picture.size) <= 360 for picture in shown)
    others = asked["like"]
    assert [part.type for part in others.content] == ["text"]
    assert first not in [record["id"] for record in others.structured_content["data"]]
    assert [record["id"] for record in asked["where"].structured_content["data"]] == [first], text_of(asked["where"])


def test_look_shows_one_picture_with_its_facts(asked: dict[str, Any], photos: Path) -> None:
    facts = asked["look"].structured_content
    assert Path(facts["image"]) == photos / "coffee.png" and "embedding" not in facts
    (part,) = (part for part in asked["look"].content if part.type == "image")
    with Image.open(photos / "coffee.png") as original:
        assert max(picture_of(part).size) == min(1024, max(original.size))


def test_ask_answers(asked: dict[str, Any]) -> None:
    reply = asked["ask"].structured_content
    assert reply["answer"] and reply["model"].startswith("mini@") and reply["finish"] == "stop"


def test_what_is_wrong_is_told_to_the_assistant(asked: dict[str, Any]) -> None:
    for name, said in (
        ("empty", "nothing to look for"),
        ("unknown", "no picture /etc/passwd"),
        ("elsewhere", "the picture cannot be used"),
        ("no model", "there is no model nonesuch"),
        ("too many", "less than or equal to 50"),
    ):
        assert asked[name].is_error and said in text_of(asked[name]), text_of(asked[name])


def test_without_an_index_it_says_how_to_make_one(tmp_path: Path) -> None:
    async def session(client: ClientSession) -> None:
        await client.initialize()
        result = await client.call_tool("search", {"query": "a"})
        assert result.is_error and "vlmkit embed PHOTOS | vlmkit index" in text_of(result)

    assert _speak(tmp_path, own_environment(tmp_path), session, "-q") == ""


def test_the_start_is_light_and_the_package_is_named(vlmkit, shell) -> None:
    code = "import sys; sys.argv = ['vlmkit', 'serve', '--mcp']; from vlmkit.__main__ import run\ntry: run()\n"
    code += f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = shell(f'{sys.executable} -c "{code}" < /dev/null')
    assert done.stdout == b"" and done.stderr.endswith(b"[]\n")
    lacking = (
        "import sys; sys.modules['mcp'] = None; from vlmkit.cli.app import main; sys.exit(main(['serve', '--mcp']))"
    )
    done = shell(f'{sys.executable} -c "{lacking}"')
    said = done.stderr
    assert done.returncode == 2 and b"pip install 'vlmkit[mcp]'" in said and said.count(b"\n") == 1
    for flag in (["--port", 1], ["--cors", "https://a.org"], ["--print", "systemd"]):
        assert flag[0] in vlmkit("serve", "--mcp", *flag, code=2).stderr.decode()
