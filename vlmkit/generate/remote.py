"""Requests to a remote model: several under way at a time, the answers in the order of the requests."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import NamedTuple

from vlmkit.generate.questions import ChatSample
from vlmkit.io.records import Failed
from vlmkit.models.types import Answer, RequestError

HELD = 4  # answers that may wait for an earlier one, for each request under way


class Completed(NamedTuple):
    """A sample, and the answer to its request, which took so many milliseconds."""

    sample: ChatSample
    answer: Answer | RequestError
    ms: float


class PendingRequest:
    """A sample whose request is under way."""

    def __init__(self, sample: ChatSample, future: Future[Answer | RequestError]) -> None:
        self.sample, self.future = sample, future
        self._start = self._end = time.perf_counter()
        future.add_done_callback(self._stop)

    def _stop(self, _: Future[Answer | RequestError]) -> None:
        self._end = time.perf_counter()

    def complete(self) -> Completed:
        return Completed(self.sample, self.future.result(), 1000 * (self._end - self._start))


def complete_in_order(
    samples: Iterable[ChatSample | Failed], submit: Callable[[ChatSample], Future[Answer | RequestError]], at_once: int
) -> Iterator[Completed | Failed]:
    """Each sample with its answer, in input order, with `at_once` requests under way as long as there are so many."""
    waiting: deque[PendingRequest | Failed] = deque()
    under_way: set[Future[Answer | RequestError]] = set()
    try:
        for sample in samples:
            if isinstance(sample, Failed):
                waiting.append(sample)
            else:
                waiting.append(pending := PendingRequest(sample, submit(sample)))
                under_way.add(pending.future)
            if len(under_way) >= at_once:
                under_way = wait(under_way, return_when=FIRST_COMPLETED).not_done
            while waiting and (
                isinstance(first := waiting[0], Failed) or first.future.done() or len(waiting) >= HELD * at_once
            ):
                yield _outcome(waiting.popleft())
        while waiting:
            yield _outcome(waiting.popleft())
    finally:
        for future in under_way:
            future.cancel()


def _outcome(entry: PendingRequest | Failed) -> Completed | Failed:
    return entry if isinstance(entry, Failed) else entry.complete()
