"""Answers as they come: from the thread of the model to the stream of events."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from vlmkit.models.types import Answer, RequestError
from vlmkit.serve.batching import Batcher
from vlmkit.serve.models import ALONE

PING_SECONDS = 15.0  # after which a proxy may take silence for the end


class Enough(Exception):
    """Nobody reads on: the model need not either."""


class Stopper:
    """Passes text on to `say` up to the first of `stops`, and holds back what one of them may begin with."""

    def __init__(self, stops: Sequence[str], say: Callable[[str], None]) -> None:
        self._stops, self._say, self._held = stops, say, ""
        self.stopped = False

    def put(self, text: str) -> None:
        if self.stopped:
            return
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._pass_on(min(found))
        else:
            ends = (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
            self._pass_on(len(self._held) - max(ends, default=0))

    def end(self) -> None:
        if not self.stopped:
            self._pass_on(len(self._held))

    def _pass_on(self, length: int) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if text:
            self._say(text)


Outcome = Answer | RequestError


async def streamed(
    batcher: Batcher, work: Callable[[Callable[[str], None]], Outcome], seconds: float
) -> AsyncIterator[str | Outcome | None]:
    """The pieces that `work` says in the thread of the model, None for each while without one, and what it returns.

    Raises TimeoutError after so many seconds.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    left = threading.Event()

    def say(text: str) -> None:
        if left.is_set():
            raise Enough
        loop.call_soon_threadsafe(pieces.put_nowait, text)

    answer = asyncio.ensure_future(batcher(ALONE, lambda: work(say)))
    answer.add_done_callback(lambda _: pieces.put_nowait(None))
    end = loop.time() + seconds
    try:
        while True:
            try:
                piece = await asyncio.wait_for(pieces.get(), min(PING_SECONDS, end - loop.time()))
            except TimeoutError:
                if loop.time() >= end:
                    raise
                yield None
                continue
            if piece is None:
                break
            yield piece
        yield answer.result()
    finally:
        left.set()
        answer.cancel()
