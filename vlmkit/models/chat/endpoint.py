"""Models of any OpenAI-compatible endpoint, remote or local, through the `openai` package.

Requests run in an event loop in a thread of its own, so that a signal never waits for a server. Nothing is sent
anywhere but to the base URL: redirects are not followed.
"""

import asyncio
import hashlib
import os
import re
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from vlmkit.errors import VlmkitError, check_installed
from vlmkit.io.pictures import at_marks
from vlmkit.io.records import loads
from vlmkit.models.batching import BatchSize
from vlmkit.models.boxes import find_hosted_boxes, hosted_format
from vlmkit.models.chat.endpoint_errors import LATER, SCHEMA, Failure, Refusal, Scope, reason_of, status_in
from vlmkit.models.chat.endpoint_pictures import Picture, encode_picture
from vlmkit.models.chat.endpoint_reply import StreamedMessage, Usage, read_answer
from vlmkit.models.chat.fewer_pictures import fewer, noted
from vlmkit.models.chat.pacing import OutageDetector, Pace, backoff
from vlmkit.models.chat.reasoning import AnswerStream
from vlmkit.models.types import ENDPOINT, Answer, ChatModel, EndpointOptions, Hardware, Request, RequestError, Sampling

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError
    from PIL.Image import Image

CONCURRENT_REQUESTS = 8
TIMEOUT = 300.0  # seconds without a byte, after which a try has failed
CONNECT_TIMEOUT = 10.0
RETRIES = 4
LONGEST_WAIT = 120.0  # seconds between two tries that a server may ask for
MAX_SIDE = 1536  # pixels; hosted models look at no more, or bill more for it
MAX_PICTURES = 50  # of one question about pages or frames; some take fewer, and say so
PIXEL_UNIT = 28  # pixels: the sides of pictures are multiples of it in Qwen2.5-VL
RESERVED = ("model", "messages", "stream")  # what no option may change
LONGEST_REASON = 300  # characters
T = TypeVar("T")


class Endpoint(ChatModel):
    """The model `name`, `openai:NAME`. The key and the proxies are the environment's.

    The options `timeout` (seconds), `retries`, `max_side` (pixels) and `max_pictures` (of pages or frames) are used
    here, `detail` is sent with each picture; the others go into the body of each request, where null removes a
    setting. All methods raise VlmkitError for errors that every request would have.
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
        self._pace, self._outage = Pace(endpoint.rpm), OutageDetector()
        self._renamed: dict[str, str] = {}  # settings that the endpoint takes by another name
        self._dropped: set[str] = set()  # settings that it does not take, and that are not needed
        self._usage = Usage()
        self.size = int(_number(options, "max_side", MAX_SIDE, 1))
        self.most_pictures = int(_number(options, "max_pictures", MAX_PICTURES, 1))
        self._boxes = hosted_format(self._name)
        detail = options.pop("detail", None)
        self._detail = {} if detail is None else {"detail": detail}
        self._options = options
        self._key, variable = _api_key(endpoint.key_variable), endpoint.key_variable
        self._place_remedy = f"check the model's name, {self._name}, and --base-url, which usually ends in /v1"
        self._key_remedy = f"check the key, {variable}" if self._key else f"set {variable} to your key"
        client = self._client(endpoint.base_url)
        self._completions = client.chat.completions
        self.device = str(client.base_url.copy_with(userinfo=b""))
        self.fingerprint = hashlib.sha256(f"{self.device}\n{self._name}".encode()).hexdigest()[:12]
        self.batch = BatchSize(CONCURRENT_REQUESTS)
        self._loop = asyncio.new_event_loop()
        Thread(target=_run, args=(self._loop,), name="endpoint", daemon=True).start()
        weakref.finalize(self, _close, client, self._loop).atexit = False  # the end of the process waits for nobody

    def _client(self, base_url: str | None) -> Any:
        check_installed("a model of an endpoint", "vlmkit[openai]", "openai")
        import httpx2
        import openai

        timeout = openai.Timeout(self._timeout, connect=min(self._timeout, CONNECT_TIMEOUT), pool=None)
        try:
            client = openai.AsyncOpenAI(
                api_key=self._key or "none",  # a server at home asks for none
                base_url=base_url,
                max_retries=0,  # `_send` does it
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
        # What answers in pixels of what it saw gets the size that its processor would make.
        return encode_picture(image, self.size, PIXEL_UNIT if self._boxes.scale is None else 1)

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        return [future.result() for future in [self.submit(request, sampling) for request in requests]]

    def submit(self, request: Request, sampling: Sampling) -> Future[Answer | RequestError]:
        return asyncio.run_coroutine_threadsafe(self._reply(request, sampling), self._loop)

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | RequestError:
        queue: SimpleQueue[str | None] = SimpleQueue()
        finish = asyncio.run_coroutine_threadsafe(self._stream(request, sampling, queue.put), self._loop)
        finish.add_done_callback(lambda _: queue.put(None))
        shown = AnswerStream(say)
        try:
            while (piece := queue.get()) is not None:
                shown.put(piece)
            shown.end()
            answer = finish.result()
        finally:
            finish.cancel()
            # Generators of the client that broke off are closed by a task, which must not outlive the command.
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), self._loop).result()
        if shown.lost and isinstance(answer, Answer):
            what = "the reply began with what the model thought, which was shown before it could be known"
            return RequestError(what, "leave --stream out, or have the server tell reasoning apart")
        return answer

    def usage(self) -> dict[str, int]:
        return {"tokens sent": self._usage.prompt, "tokens received": self._usage.completion}

    async def _reply(self, request: Request, sampling: Sampling) -> Answer | RequestError:
        async def send(body: dict[str, Any]) -> Answer | RequestError:
            async with asyncio.timeout(2 * self._timeout):
                response = await self._completions.with_raw_response.create(**body)
            return self._read(response.content, response.headers, body, request)

        with self._outage.request():
            try:
                answer = await self._send(request, sampling, send)
            except Failure as failure:
                return await self._again(failure, request, lambda less: self._reply(less, sampling))
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

    async def _stream(self, request: Request, sampling: Sampling, put: Callable[[str], None]) -> Answer | RequestError:
        """Pass the text to `put` as it comes; returns the whole answer."""
        import openai

        async def send(body: dict[str, Any]) -> Any:
            return body, await self._completions.create(**body, stream=True)

        reply = StreamedMessage()
        with self._outage.request():
            try:
                body, chunks = await self._send(request, sampling, send)
                async with chunks:
                    if "json" in chunks.response.headers.get("content-type", ""):  # an error, or not a stream
                        data = await chunks.response.aread()
                        answer = self._read(data, chunks.response.headers, body, request)
                        put(answer.text if isinstance(answer, Answer) else "")
                        return answer
                    async for chunk in chunks:
                        put(reply.add(chunk))
                if reply.finish is None and not reply.error:
                    raise Failure("the response broke off", LATER)
                return self._answer(reply.whole(), request)
            except Failure as failure:
                return await self._again(failure, request, lambda less: self._stream(less, sampling, put))
            except openai.APIError as error:
                return RequestError(f"the answer broke off: {self._short(reason_of(error.body) or str(error))}", LATER)
            except (openai.OpenAIError, ValueError, LookupError, TypeError, AttributeError) as error:
                return RequestError(f"the response broke off ({self._short(str(error))})", LATER)

    async def _send(self, request: Request, sampling: Sampling, send: Callable[[dict[str, Any]], Awaitable[T]]) -> T:
        """What `send` returns for the request's body, after as many tries as it takes. Raises Failure."""
        tries, reason = 0, ""
        while True:
            body = self._body(request, sampling)
            await self._pace.turn()
            tries += 1
            try:
                async with self._errors(body, request):
                    result = await send(body)
                self._pace.ease()
                self._outage.answer()
                return result
            except Failure as failure:
                if self._adapt(failure, body["extra_body"]):
                    continue
                again = failure.stays() and failure.reason == reason
                if failure.wait is None or again or tries >= self._tries:
                    raise
                if failure.wait > LONGEST_WAIT:
                    what = f"{failure.what}, and asks to wait {failure.wait:.0f} s"
                    raise Failure(what, "run the command again then, with --resume", Scope.ALL) from None
                reason = failure.reason
                wait = failure.wait or backoff(tries)
                if failure.status == 429:
                    self._pace.hold(wait)
                else:
                    await asyncio.sleep(wait)

    def _read(self, data: bytes, headers: Mapping[str, str], body: dict[str, Any], request: Request) -> Any:
        """The answer in a response of status 200. Raises Failure."""
        text = data.decode(errors="replace")
        try:
            reply = loads(data)
        except ValueError:
            reply = None
        what = f"the response contains no answer: {self._short(text)}" if text.strip() else "the response is empty"
        if reply is None and text.lstrip()[:1] == "<":
            raise Failure(what, self._place_remedy)
        try:
            return self._answer(reply, request)
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
        found = reply[0] if isinstance(reply, list) and reply else reply
        named = isinstance(found, dict) and not found.keys().isdisjoint(("error", "errors", "detail", "message"))
        if not named or not (reason := reason_of(reply)):
            # Neither an answer nor an error: what another interface than that of OpenAI replies.
            raise Failure(what, LATER if isinstance(found, dict) and "choices" in found else self._place_remedy)
        refusal = self._refusal(status_in(reply) or 200, reply, reason, headers, body, request)
        raise refusal.failure(self.device, self._name, self._key_remedy)

    def _answer(self, reply: Any, request: Request) -> Answer | RequestError:
        answer = read_answer(reply, request.start)
        self._usage.add(reply)
        return answer

    def _adapt(self, failure: Failure, settings: Mapping[str, Any]) -> bool:
        """Whether another request can do without the setting that the endpoint refuses, to the same effect."""
        if failure.status not in (400, 404, 415, 422, 500, 501):
            return False
        large = re.search(r"context|large|exceed", failure.reason)
        if "max_tokens" in settings and "max_completion_tokens" in failure.reason and not large:
            self._renamed["max_tokens"] = "max_completion_tokens"
            return True
        if "response_format" in settings and SCHEMA.search(failure.reason) and "response_format" not in self._options:
            self._dropped.add("response_format")  # the question asks for the schema, and the answer is checked
            return True
        return False

    async def _again(self, failure: Failure, request: Request, ask: Callable[[Request], Awaitable[Any]]) -> Any:
        """The failure; or what is said about fewer pages or frames, if there were too many: so it is from now on."""
        if (less := fewer(request, failure.status, failure.reason)) is None:
            return await self._failed(failure)
        self.most_pictures = len(less.labels)
        return noted(await ask(less), request, less)

    async def _failed(self, failure: Failure) -> RequestError:
        """The failure of a request. Raises VlmkitError where every one would meet it."""
        if failure.scope is Scope.ONE:
            return RequestError(failure.what, failure.remedy)
        if failure.scope is Scope.ALL or await self._outage.concerns_all(failure.what):
            raise VlmkitError(failure.what, failure.remedy) from None
        return RequestError(failure.what, failure.remedy)

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
        settings = {
            self._renamed.get(key, key): value
            for key, value in settings.items()
            if value is not None and key not in self._dropped
        }
        return {"model": self._name, "messages": self._messages(request), "extra_body": settings}

    def _messages(self, request: Request) -> list[dict[str, Any]]:
        begin = f'\nBegin your reply with these words: "{request.start.strip()}"' if request.start.strip() else ""
        prompt = self._boxes.prompt_for(request.prompt) if request.task == "boxes" else request.labelled_prompt
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
    async def _errors(self, body: dict[str, Any], request: Request) -> AsyncIterator[None]:
        """Turn errors of a request into Failure."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._refused(error, body, request) from None
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from None
        except TimeoutError:
            raise Failure("the response did not finish in time", LATER) from None

    def _unreachable(self, error: "APIConnectionError") -> Failure:
        import httpx2

        cause = error.__cause__
        silent = isinstance(cause, httpx2.TimeoutException)
        reason = f"silent for {self._timeout:g} s" if silent else self._short(str(cause)) or type(cause).__name__
        what = f"{reason} ({self._tries} tries)"
        if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)) and not self._outage.answered:
            what, remedy = f"{self.device} cannot be reached, {what}", "start the server, or check --base-url"
            return Failure(what, remedy, Scope.ALL, 0.0)
        return Failure(f"the endpoint fails: {what}", LATER, Scope.UNKNOWN, 0.0)

    def _refused(self, error: "APIStatusError", body: dict[str, Any], request: Request) -> Failure:
        response = error.response
        if error.status_code < 400:
            place = self._short(response.headers.get("Location", "nowhere"))
            what = f"{self.device} redirects to {place}"
            return Failure(what, "name that with --base-url if you trust it", Scope.ALL)
        try:
            said = loads(response.content)
        except ValueError:
            said = response.text
        reason = reason_of(said) or response.reason_phrase
        refusal = self._refusal(error.status_code, said, reason, response.headers, body, request)
        return refusal.failure(self.device, self._name, self._key_remedy)

    def _refusal(
        self, status: int, said: Any, reason: str, headers: Mapping[str, str], body: dict[str, Any], request: Request
    ) -> Refusal:
        pictures = bool(request.all_pictures())
        return Refusal(status, said, self._short(reason), headers, body["extra_body"], pictures)

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


def _api_key(variable: str) -> str:
    """The key in the environment, empty if there is none. Raises VlmkitError where a variable named is not set."""
    key = os.environ.get(variable, "").strip()
    if not key and variable != EndpointOptions().key_variable:
        raise VlmkitError(f"{variable}, of --api-key-env, is not set", "set it to the key")
    if not key.isascii() or not key.isprintable():
        raise VlmkitError(f"{variable} contains invalid characters", "remove quotes and line breaks")
    return key
