"""When requests to an endpoint are sent, and which of their failures all of them would meet."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

ALIKE = 3  # failures of one reason, without any answer, after which every request is taken to meet it
FIRST_PAUSE = 0.5  # seconds; each further pause is twice as long
LONGEST_PAUSE = 8.0  # seconds, unless the server asks for more
EASING = 0.8  # of the time between two requests, with each answer
NUMBERS = re.compile(r"\S*\d\S*")  # and identifiers


def backoff(tries: int) -> float:
    """Seconds to wait after so many tries where the server does not say how long."""
    return min(FIRST_PAUSE * 2.0 ** (tries - 1), LONGEST_PAUSE)


class Pace:
    """Requests one after the other: at most `rpm` a minute (0: as fast as they come), fewer after refusals for it.

    For one event loop.
    """

    def __init__(self, rpm: float = 0.0) -> None:
        self._interval = self._least = 60 / rpm if rpm else 0.0
        self._next = 0.0
        self._lock = asyncio.Lock()

    async def turn(self) -> None:
        """Wait until the next request may be sent, in the order of the calls."""
        async with self._lock:
            while (wait := self._next - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self._next = time.monotonic() + self._interval

    def hold(self, seconds: float) -> None:
        """No request for some `seconds`, and then fewer at a time."""
        self._interval = min(max(2 * self._interval, FIRST_PAUSE), max(seconds, FIRST_PAUSE, self._least))
        self._next = max(self._next, time.monotonic() + seconds)

    def ease(self) -> None:
        """A request was answered."""
        eased = self._interval * EASING
        self._interval = max(self._least, eased if eased > FIRST_PAUSE / 10 else 0.0)


class OutageDetector:
    """Tells failures that every request would meet from those of one. For one event loop.

    As long as nothing was answered, a failure waits until something is, or until all requests under way have failed.
    """

    def __init__(self) -> None:
        self.answered = False
        self._under_way = 0
        self._reasons: list[str] = []
        self._waiting: list[asyncio.Future[None]] = []

    @contextmanager
    def request(self) -> Iterator[None]:
        """The time in which a request is under way."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._settle()

    def answer(self) -> None:
        self.answered = True
        self._settle()

    async def concerns_all(self, reason: str) -> bool:
        """Whether every request would fail for that `reason`: at least three did, and none otherwise."""
        self._reasons.append(NUMBERS.sub("", reason))
        if not self.answered:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            self._settle()
            await future
        return not self.answered and len(self._reasons) >= ALIKE and len(set(self._reasons)) == 1

    def _settle(self) -> None:
        if self.answered or len(self._waiting) >= self._under_way or len(set(self._reasons)) > 1:
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)
            self._waiting.clear()
