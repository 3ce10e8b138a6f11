"""The index for assistants: search, look and ask by the Model Context Protocol, on standard input and output."""

import asyncio
import base64
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

import orjson
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from pydantic import Field
from starlette.responses import Response

from vlmkit import __version__
from vlmkit.errors import CODES
from vlmkit.io.files import user_folder
from vlmkit.io.records import Record
from vlmkit.io.sources import PictureError
from vlmkit.serve.chat import chat_completions
from vlmkit.serve.errors import explained
from vlmkit.serve.page.files import open_local
from vlmkit.serve.page.thumbnails import Thumbnails, etag_of
from vlmkit.serve.search import search
from vlmkit.serve.service import Service

INSTRUCTIONS = (
    "The user's pictures on this machine, indexed by vlmkit. search finds pictures by words or likeness, look shows "
    "one with all that is known of it, ask has a vision-language model answer a question about some. Nothing is "
    "changed. Tell the user the paths in `image`: not every program shows the pictures that a tool returns."
)
MOST_FOUND, MOST_ASKED = 50, 8
Ids = Annotated[list[str], Field(description="The `id` of pictures that search found.")]
Texts = list[str] | None


def run(service: Service) -> None:
    """Answer one assistant until it closes standard input."""
    for number in CODES:  # nothing is written, so a signal may end it anywhere
        signal.signal(number, signal.SIG_DFL)

    async def answer() -> None:
        async with service.running():
            await _server(service).run_stdio_async()

    asyncio.run(answer())


def _server(service: Service) -> MCPServer:
    made = MCPServer("vlmkit", version=__version__, instructions=INSTRUCTIONS, log_level="ERROR")
    tools = Tools(service)
    reads = ToolAnnotations(read_only_hint=True, destructive_hint=False, open_world_hint=False)
    for tool in (tools.search, tools.look, tools.ask):
        made.add_tool(tool, annotations=reads, structured_output=False)
    return made


class Tools:
    """The tools; an assistant reads their names, docstrings and parameters."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._thumbnails = Thumbnails(user_folder("cache") / "thumbnails")

    async def search(
        self,
        query: Annotated[str | None, Field(description="What the pictures show, such as: a red car in snow.")] = None,
        minus: Annotated[str | None, Field(description="What they should not show.")] = None,
        like: Annotated[Texts, Field(description="Ids of pictures that they should look like.")] = None,
        where: Annotated[
            Texts, Field(description="Conditions on fields that all hold, such as width>1000 or camera~*Canon*.")
        ] = None,
        near: Annotated[
            str | None, Field(description="LAT,LON,KM: only pictures taken within so many kilometres of a place.")
        ] = None,
        k: Annotated[int, Field(ge=1, le=MOST_FOUND, description="How many pictures.")] = 8,
        offset: Annotated[int, Field(ge=0, description="How many of the best to leave out.")] = 0,
        thumbnails: Annotated[bool, Field(description="Whether to return the pictures, small.")] = True,
    ) -> CallToolResult:
        """Find pictures by what they show: records with `id`, `image` (the path) and `score`, best first."""
        body = {"query": query, "minus": minus, "like": like, "where": where, "near": near, "k": k, "offset": offset}
        reply = await self._reply(search, body)
        return await self._result(reply, reply["data"] if thumbnails else [], "thumbnail")

    async def look(
        self, id: Annotated[str, Field(description="The `id` or the path of a picture in the index.")]
    ) -> CallToolResult:
        """Show one picture, up to 1,024 pixels, with all that the index knows of it."""
        record = await self._within(self._service.look(lambda index: index.get(id)))
        if record is None:
            raise ToolError(f"the index has no picture {id[:200]}: take an id that search returns")
        facts = {name: value for name, value in record.items() if name != "embedding"}
        return await self._result(facts, [record], "medium")

    async def ask(
        self,
        question: Annotated[str, Field(min_length=1)],
        ids: Annotated[Ids, Field(min_length=1, max_length=MOST_ASKED)],
        model: Annotated[str | None, Field(description="Another model that the user offers.")] = None,
    ) -> CallToolResult:
        """Ask the user's own vision-language model about pictures; `answer`, and `warnings` where it is unsure."""
        shown = [{"type": "image_url", "image_url": {"url": id}} for id in ids]
        content = [*shown, {"type": "text", "text": question}]
        reply = await self._reply(
            chat_completions, {"messages": [{"role": "user", "content": content}], "model": model}
        )
        choice = reply["choices"][0]
        told = {"answer": choice["message"]["content"], "finish": choice["finish_reason"], "model": reply["model"]}
        return await self._result(told | {key: reply[key] for key in ("warnings",) if key in reply}, [], "")

    async def _reply(self, handler: Callable[[Service, Any], Awaitable[Response]], body: dict[str, Any]) -> Any:
        return orjson.loads((await self._within(handler(self._service, body))).body)

    async def _within(self, work: Awaitable[Any]) -> Any:
        """What comes of `work`. Raises ToolError, also where it takes too long."""
        seconds = self._service.settings.timeout
        try:
            return await asyncio.wait_for(work, seconds)
        except TimeoutError:
            raise ToolError(f"no answer within {seconds:g} s: ask for less at once") from None
        except Exception as error:
            raise ToolError(str(explained(error))) from None

    async def _result(self, reply: dict[str, Any], records: list[Record], form: str) -> CallToolResult:
        """`reply` as JSON and as text, then the pictures of `records`, each after its id."""
        pictures: list[ContentBlock] = []
        for record in records:
            if isinstance(path := record.get("image"), str):
                shown = await self._service.pictures.in_thread(partial(self._picture, path, form))
                pictures += [TextContent(text=f"{record['id']}:"), shown]
        text = orjson.dumps(reply, option=orjson.OPT_INDENT_2).decode()
        return CallToolResult(content=[TextContent(text=text), *pictures], structured_content=reply)

    def _picture(self, path: str, form: str) -> ContentBlock:
        try:
            source = open_local(path)
            data = self._thumbnails.get(etag_of(path, source, form), source, form)
        except PictureError as error:
            return TextContent(text=f"the picture cannot be shown: {error}")
        return ImageContent(data=base64.b64encode(data).decode(), mime_type="image/jpeg")
