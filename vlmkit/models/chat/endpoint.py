"""Models of any OpenAI-compatible endpoint, remote or local, through the `openai` package.

Requests run in an event loop in a thread of its own, so that a signal never waits for a server. Nothing is sent
anywhere but to the base URL: redirects are not followed.
"""

import asyncio
import base64
import hashlib
import io
import os
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.io.pictures import at_marks
from vlmkit.io.records import loads
from vlmkit.models.batching import BatchSize
from vlmkit.models.boxes import find_hosted_boxes, hosted_format
from vlmkit.models.types import ENDPOINT, Answer, ChatModel, EndpointOptions, Hardware, Request, RequestError, Sampling

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError
    from PIL.Image import Image

CONCURRENT_REQUESTS = 8
TIMEOUT = 300.0  # seconds without a byte, after which a try has failed
CONNECT_TIMEOUT = 10.0
RETRIES = 4
LONGEST_WAIT = 120.0  # seconds that the package waits for a Retry-After
MAX_SIDE = 1536  # pixels; hosted models look at no more, or bill more for it
FEW_COLORS = 4096  # drawings, screens and small pictures; these go as PNG, which keeps letters sharp
JPEG_QUALITY = 90
PIXEL_UNIT = 28  # pixels: the sides of pictures are multiples of it in Qwen2.5-VL
RESERVED = ("model", "messages", "stream")  # what no option may change
LONGEST_REASON = 300  # characters
FILTERED = "blocked by the endpoint's content filter"
LATER = "ask again later"


class Picture(NamedTuple):
    """A picture as a data URI, the size of the original, and the size that was sent."""

    url: str
    size: tuple[int, int]
    sent: tuple[int, int]


class Endpoint(ChatModel):
    """The model `name`, `openai:NAME`. The key is $OPENAI_API_KEY, the proxies are the environment's.

    The options `timeout` (seconds), `retries` and `max_side` (pixels) are used here, and `detail` is sent with each
    picture; the others go into the body of each request, where null removes a setting. All methods raise
    VlmkitError for errors that every request would have.
    """

    size: int
    interleaved = True
    tasks = ("answer", "ocr", "boxes")

    def __init__(self, name: str, hardware: Hardware, endpoint: EndpointOptions) -> None:
        self._name = name.removeprefix(ENDPOINT)
        if not self._name.strip() or not self._name.isprintable():
            raise VlmkitError(f"{name} contains no model name", f"write {ENDPOINT}NAME, with the endpoint's own name")
        if hardware.device != "auto":
            raise VlmkitError(f"{name} runs at an endpoint, not on a device here", "leave --device out")
        options = dict(endpoint.options)
        if reserved := next((key for key in RESERVED if key in options), None):
            raise VlmkitError(f"--option {reserved} cannot be set", "leave it out")
        self._timeout = float(_number(options, "timeout", TIMEOUT, 0.001))
        self._tries = 1 + int(_number(options, "retries", RETRIES, 0))
        self.size = int(_number(options, "max_side", MAX_SIDE, 1))
        self._boxes = hosted_format(self._name)
        detail = options.pop("detail", None)
        self._detail = {} if detail is None else {"detail": detail}
        self._options = options
        self._key = _api_key()
        self._answered = False  # then the URL and the key are right
        client = self._client(endpoint.base_url)
        self._completions = client.chat.completions
        self.device = str(client.base_url.copy_with(userinfo=b""))
        self.fingerprint = hashlib.sha256(f"{self.device}\n{self._name}".encode()).hexdigest()[:12]
        self.batch = BatchSize(CONCURRENT_REQUESTS)
        self._loop = asyncio.new_event_loop()
        Thread(target=_run, args=(self._loop,), name="endpoint", daemon=True).start()
        weakref.finalize(self, _close, client, self._loop).atexit = False  # the end of the process waits for nobody

    def _client(self, base_url: str | None) -> Any:
        try:
            import httpx2
            import openai
        except ImportError:
            raise VlmkitError("endpoints need one more package", "pip install 'vlmkit[openai]'") from None
        timeout = openai.Timeout(self._timeout, connect=min(self._timeout, CONNECT_TIMEOUT), pool=None)
        try:
            client = openai.AsyncOpenAI(
                api_key=self._key or "none",  # a server at home asks for none
                base_url=base_url,
                max_retries=self._tries - 1,
                timeout=timeout,
                http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
            )
        except (openai.OpenAIError, httpx2.InvalidURL, ValueError, ImportError) as error:
            raise VlmkitError(
                f"the endpoint cannot be used ({error})", "check --base-url and the proxies set"
            ) from None
        if client.base_url.scheme not in ("http", "https") or not client.base_url.host:
            raise VlmkitError(f"the base URL '{client.base_url}' is not valid", "write --base-url http://HOST:PORT/v1")
        return client

    def preprocess(self, image: "Image") -> Picture:
        """The picture with no side above `size` pixels and without metadata."""
        from PIL import Image

        scale = min(1.0, self.size / max(image.size))
        # What answers in pixels of what it saw gets the size that its processor would make.
        unit = PIXEL_UNIT if self._boxes.scale is None else 1
        most = max(1, self.size // unit)
        width, height = (unit * min(max(1, round(side * scale / unit)), most) for side in image.size)
        same = (width, height) == image.size
        sent = image.copy() if same else image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        sent.info = {}
        form = "JPEG" if sent.getcolors(FEW_COLORS) is None else "PNG"
        data = io.BytesIO()
        sent.save(data, form, quality=JPEG_QUALITY)
        url = f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
        return Picture(url, image.size, sent.size)

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        return [future.result() for future in [self.submit(request, sampling) for request in requests]]

    def submit(self, request: Request, sampling: Sampling) -> Future[Answer | RequestError]:
        return asyncio.run_coroutine_threadsafe(self._reply(request, sampling), self._loop)

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | RequestError:
        queue: SimpleQueue[str | None] = SimpleQueue()
        finish = asyncio.run_coroutine_threadsafe(self._stream(request, sampling, queue.put), self._loop)
        finish.add_done_callback(lambda _: queue.put(None))
        pieces = []
        try:
            while (piece := queue.get()) is not None:
                pieces.append(piece)
                say(piece)
            return Answer("".join(pieces).strip(), finish.result(), len(pieces))
        except RequestError as error:
            return error
        finally:
            finish.cancel()

    async def _reply(self, request: Request, sampling: Sampling) -> Answer | RequestError:
        body = self._body(request, sampling)
        limit = self._tries * (self._timeout + LONGEST_WAIT) - LONGEST_WAIT
        try:
            async with self._errors(body["extra_body"]), asyncio.timeout(limit):
                reply = await self._completions.with_raw_response.create(**body)
        except RequestError as error:
            return error
        try:
            answer = _answer(loads(reply.content), request.start)
        except (ValueError, LookupError, TypeError, AttributeError):
            return RequestError(f"the response contains no answer: {self._short(reply.text)}", LATER)
        if request.task != "boxes" or isinstance(answer, RequestError):
            return answer
        picture = request.pictures[0]
        try:
            boxes, note = find_hosted_boxes(answer.text, self._boxes, picture.size, picture.sent)
        except RequestError as error:
            return error
        words = not boxes and "[" not in answer.text  # instead of a list, and worth reading
        text = answer.text if words else ", ".join(box["label"] for box in boxes)
        return replace(answer, text=text, boxes=boxes, note=note)

    async def _stream(self, request: Request, sampling: Sampling, put: Callable[[str], None]) -> str:
        """Pass the text to `put` as it comes; returns the finish reason. Raises RequestError."""
        import openai

        body = self._body(request, sampling)
        finish = None
        async with self._errors(body["extra_body"]):
            chunks = await self._completions.create(**body, stream=True)
        try:
            async with chunks:
                async for chunk in chunks:
                    for choice in (chunk.choices or [])[:1]:
                        finish = choice.finish_reason or finish
                        put(choice.delta.content or choice.delta.refusal or "")
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise RequestError(f"the response broke off ({self._short(str(error))})", LATER) from None
        if finish is None:
            raise RequestError("the response broke off", LATER)
        if finish == "content_filter":
            raise RequestError(FILTERED)
        return "length" if finish == "length" else "stop"

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """The arguments of `chat.completions.create`."""
        settings: dict[str, Any] = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
        if sampling.temperature > 0:
            settings["seed"] = sampling.seed + request.number
        if sampling.top_p < 1:
            settings["top_p"] = sampling.top_p
        if request.schema is not None:
            form = {"name": "answer", "strict": True, "schema": request.schema}
            settings["response_format"] = {"type": "json_schema", "json_schema": form}
        settings |= self._options
        settings = {key: value for key, value in settings.items() if value is not None}
        return {"model": self._name, "messages": self._messages(request), "extra_body": settings}

    def _messages(self, request: Request) -> list[dict[str, Any]]:
        begin = f'\nBegin your reply with these words: "{request.start.strip()}"' if request.start.strip() else ""
        prompt = self._boxes.prompt_for(request.prompt) if request.task == "boxes" else request.prompt
        messages: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
        for turn in request.earlier:
            messages.append({"role": "user", "content": self._content(turn.prompt, turn.pictures)})
            messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, {"role": "user", "content": self._content(prompt + begin, request.pictures)}]

    def _content(self, text: str, pictures: Sequence[Picture]) -> Any:
        if not pictures:
            return text
        parts = (part.strip() if isinstance(part, str) else part for part in at_marks(text, pictures))
        return [self._part(part) for part in parts if part]

    def _part(self, part: str | Picture) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "image_url", "image_url": {"url": part.url, **self._detail}}

    @asynccontextmanager
    async def _errors(self, settings: Mapping[str, Any]) -> AsyncIterator[None]:
        """Turn errors of a request with `settings` into RequestError, or VlmkitError if all would have them."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._refused(error, settings) from None
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from None
        except TimeoutError:
            raise RequestError("the response did not finish in time", LATER) from None
        self._answered = True

    def _unreachable(self, error: "APIConnectionError") -> Exception:
        import httpx2

        cause = error.__cause__
        silent = isinstance(cause, httpx2.TimeoutException)
        reason = f"silent for {self._timeout:g} s" if silent else self._short(str(cause)) or type(cause).__name__
        what = f"{reason} ({self._tries} tries)"
        if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)) and not self._answered:
            return VlmkitError(f"{self.device} cannot be reached, {what}", "start the server, or check --base-url")
        return RequestError(f"the endpoint fails: {what}", LATER)

    def _refused(self, error: "APIStatusError", settings: Mapping[str, Any]) -> Exception:
        status, reason = error.status_code, self._short(_message(error))
        what = f"{self.device} answers {status}, {reason}"
        if status == 401 or (status == 403 and not self._answered):
            return VlmkitError(what, "check the key, OPENAI_API_KEY" if self._key else "set OPENAI_API_KEY to your key")
        if status == 402 or error.code == "insufficient_quota":
            return VlmkitError(what, "check the balance of that key's account")
        if status in (404, 405):
            return VlmkitError(what, f"check the model's name, {self._name}, and --base-url, which usually ends in /v1")
        if status < 400:
            place = self._short(error.response.headers.get("Location", "nowhere"))
            return VlmkitError(f"{self.device} redirects to {place}", "name that with --base-url if you trust it")
        if status in (400, 422) and str(error.param) in settings:
            return VlmkitError(what, f"change it, or leave it out with --option {error.param}=null")
        remedy = LATER if status == 429 or status >= 500 else "change the question or the picture"
        return RequestError(f"the endpoint answers {status}, {reason}", remedy)

    def _short(self, text: str) -> str:
        """One line of the endpoint's message, without the key, which it may repeat."""
        text = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "…"


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(client: Any, loop: asyncio.AbstractEventLoop) -> None:
    closed = asyncio.run_coroutine_threadsafe(client.close(), loop)
    closed.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))


def _number(options: dict[str, Any], key: str, default: float, minimum: float) -> float:
    """Remove from `options` the option `key`, which is not sent to the endpoint, and return it."""
    found = options.pop(key, default)
    if type(found) not in (int, type(default)) or not minimum <= found <= 1e6:
        raise VlmkitError(f"--option {key}={found} is not valid", f"give a number such as {default:g}")
    return found


def _api_key() -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii() or not key.isprintable():
        raise VlmkitError("OPENAI_API_KEY contains invalid characters", "remove quotes and line breaks")
    return key


def _answer(reply: Any, start: str) -> Answer | RequestError:
    """The first choice of a chat completion. Raises ValueError, LookupError, TypeError or AttributeError for others."""
    choice = reply["choices"][0]
    message, finish = choice["message"], choice.get("finish_reason")
    if message.get("refusal"):
        return RequestError(f"the model refuses: {message['refusal']}")
    if finish == "content_filter":
        return RequestError(FILTERED)
    content = message["content"]
    if isinstance(content, list):  # of parts, as some servers answer
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    text = content.strip()
    if not text and finish == "length":
        return RequestError("cut off before the answer began", "raise --max-tokens, as the model may think first")
    if start := start.strip():
        begun = text[: len(start)].lower() == start.lower()
        text = start + (text[len(start) :] if begun else f" {text}")
    tokens = (reply.get("usage") or {}).get("completion_tokens")
    return Answer(text, "length" if finish == "length" else "stop", tokens if isinstance(tokens, int) else 0)


def _message(error: "APIStatusError") -> str:
    """The message in an error response, in OpenAI's or FastAPI's form or as plain text; not of web pages."""
    body = error.body
    found = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    text = str(found or "").strip()
    return error.response.reason_phrase if not text or text.startswith("<") else text
