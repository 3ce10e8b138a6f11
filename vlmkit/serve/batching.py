"""Requests that wait go through a model together."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from vlmkit.serve.metrics import Metrics


class Job(NamedTuple):
    key: Hashable
    item: Any
    result: asyncio.Future[Any]


class Batcher:
    """Runs `work(key, items)` in a thread of its own, for as many waiting items of one key as `most(key)` says.

    No item waits for others to come: a batch is what came while the one before ran. The longest waiting item decides
    which key is next. What a batch raises, each of its items is tried alone for.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Any, list[Any]], Sequence[Any]],
        most: Callable[[Any], int],
        metrics: Metrics,
    ) -> None:
        self._work, self._most = work, most
        self._jobs: deque[Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model {name}")
        self._task: asyncio.Task[None] | None = None
        self._waiting, self._batch = metrics.waiting.labels(name), metrics.batch.labels(name)
        self._busy = metrics.busy.labels(name)

    async def __call__(self, key: Hashable, item: Any) -> Any:
        """The result for `item`. Where the caller is cancelled, the item is left out."""
        job = Job(key, item, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._waiting.inc()
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        return await job.result

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        await asyncio.sleep(0)  # what is sent at the same time goes together
        while batch := self._next():
            start = time.perf_counter()
            await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, batch)
            self._busy.inc(time.perf_counter() - start)
        self._task = None

    def _next(self) -> list[Job]:
        batch: list[Job] = []
        rest: deque[Job] = deque()
        most = 0
        for job in self._jobs:
            if job.result.done():  # its client went away
                self._waiting.dec()
                continue
            if not batch:
                most = self._most(job.key)
            if len(batch) < max(most, 1) and (not batch or job.key == batch[0].key):
                batch.append(job)
                self._waiting.dec()
            else:
                rest.append(job)
        self._jobs = rest
        if batch:
            self._batch.observe(len(batch))
        return batch

    def _answer(self, batch: list[Job]) -> None:
        """Runs in the thread."""
        try:
            results = self._work(batch[0].key, [job.item for job in batch])
        except Exception as error:  # of whatever library
            if len(batch) == 1:
                _tell(batch[0].result, error)
            else:
                for job in batch:
                    self._answer([job])
            return
        for job, result in zip(batch, results, strict=True):
            _tell(job.result, result)


def _tell(future: asyncio.Future[Any], outcome: Any) -> None:
    def tell() -> None:
        if future.done():  # nobody waits for it any more
            return
        (future.set_exception if isinstance(outcome, Exception) else future.set_result)(outcome)

    future.get_loop().call_soon_threadsafe(tell)
