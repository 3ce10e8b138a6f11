"""How much a request may take: bytes, seconds, and a place among those that wait."""

import asyncio
import math
from collections.abc import Awaitable, Callable

import h11
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlmkit.serve.errors import ApiError, explained
from vlmkit.serve.metrics import Metrics
from vlmkit.serve.settings import MIB, Settings

HEAD_SECONDS = 20.0  # for the head of a request
BODY_SECONDS = 60.0
READ_SECONDS = 60.0  # without a byte of the answer being read
GRACE = 10.0  # seconds for the last words of a stream
CLOSE = {"Connection": "close"}  # what else the client sends is not read
SMOOTHING = 0.1


class Limits:
    """Reads the body of a request before it is answered, and gives up where the client went away.

    A request beyond `max_queue`, or with whose body all bodies would take more than four times `max_body`, is
    answered with 429.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._requests = self._bytes = 0
        self._seconds = 1.0  # that a request takes, a moving average

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        with self._metrics.request(scope) as note:
            started = False

            async def send_noted(message: Message) -> None:
                nonlocal started
                if message["type"] == "http.response.start":
                    started = True
                    note(message["status"])
                await send(message)

            try:
                await self._limited(scope, receive, send_noted, lambda: started)
            except Exception as error:  # whatever it is, the client is told
                failure = explained(error)
                if not started:
                    await failure.response()(scope, receive, send_noted)

    async def _limited(self, scope: Scope, receive: Receive, send: Send, started: Callable[[], bool]) -> None:
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self._app(scope, receive, send)
        if self._requests >= self._settings.max_queue:
            raise self._busy()
        self._requests += 1
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if self._bytes + count > 4 * self._settings.max_body:
                raise self._busy()
            taken += count
            self._bytes += count

        start = asyncio.get_running_loop().time()
        try:
            body = await self._body(Headers(scope=scope), receive, take)
            await self._answer(scope, body, receive, send, started)
        finally:
            self._requests -= 1
            self._bytes -= taken
            seconds = asyncio.get_running_loop().time() - start
            self._seconds += SMOOTHING * (seconds - self._seconds)

    def _busy(self) -> ApiError:
        seconds = str(max(1, math.ceil(self._seconds)))
        what = f"{self._requests} requests wait already: try again in {seconds} s"
        return ApiError(429, what, code="queue_full", headers={"Retry-After": seconds} | CLOSE)

    async def _body(self, headers: Headers, receive: Receive, take: Callable[[int], None]) -> bytes:
        most = self._settings.max_body
        too_large = ApiError(
            413, f"the body has more than {most / MIB:g} MiB: send less at once", code="too_large", headers=CLOSE
        )
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "the client went away")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise too_large
                    take(len(part))
                    parts.append(part)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            what = f"the body did not come within {BODY_SECONDS:.0f} s"
            raise ApiError(408, what, code="timeout", headers=CLOSE) from None

    async def _answer(
        self, scope: Scope, body: bytes, receive: Receive, send: Send, started: Callable[[], bool]
    ) -> None:
        """Have the application answer, unless the client goes away or the time is over."""
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await asyncio.Future()

        answer = asyncio.ensure_future(self._app(scope, replay, send))
        gone = asyncio.ensure_future(_disconnect(receive))
        seconds = self._settings.timeout
        try:
            done, _ = await asyncio.wait({answer, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done and started():  # a stream says itself that its time is over
                done, _ = await asyncio.wait({answer, gone}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                return answer.result()
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.wait({answer, gone})
        if gone in done:
            raise ApiError(499, "the client went away")
        raise ApiError(504, f"no answer within {seconds:g} s: ask for less at once", code="timeout")


async def _disconnect(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Http(H11Protocol):
    """HTTP/1.1 of uvicorn, and an end for who sends the head of a request too slowly or does not read the answer:
    uvicorn would wait for ever.
    """

    _limit: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._limit is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading(None)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:  # what the application is about to say comes too late
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # it has had an answer
            self.transport.close()

    def _wait_for_head(self) -> None:
        self._limit = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _watch_reading(self, before: int | None) -> None:
        """Hang up where as many bytes as `before` wait to be read."""
        waiting = self.transport.get_write_buffer_size()
        if waiting == before:
            self.transport.abort()
        else:
            self._reading = self.loop.call_later(READ_SECONDS, self._watch_reading, waiting)

    def _stop_watching(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_waiting(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
