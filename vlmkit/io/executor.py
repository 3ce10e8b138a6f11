"""Pipelines: items go through stages (fetch, decode, encode) in order, with a bounded number between two stages.

Stages are picklable, so that an executor may run them in other processes. An executor is one function
`(stages, items) -> results` and one line in EXECUTORS; packages add theirs by entry points of the group
`vlmkit.executors`.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from vlmkit.io.records import Failed, unless_failed
from vlmkit.io.registry import Registry

EXECUTORS = Registry("vlmkit.executors", {"threads": "vlmkit.io.executor:run_in_threads"})
FETCHERS = 16  # threads that wait for the network, not for a core

In = TypeVar("In")
Out = TypeVar("Out")


class Stage:
    """One step, done for several items at a time in `workers` threads; at most `depth` results wait for an earlier one.

    A Failed is passed on. Attributes that begin with `_` are opened by `load` where the stage runs, and not pickled.
    """

    workers: int = 1
    depth: int = 2

    def load(self) -> None:
        """Load what the stage needs. Called once, before the first item."""

    def close(self) -> None:
        """Called once, after the last item or where the pipeline is given up."""

    def __call__(self, item: Any) -> Any:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class BatchStage(Stage):
    """A step for batches: a list of items gives as many results; one batch after the other."""

    def size(self) -> int:
        """How many items the next batch has."""
        raise NotImplementedError


class Lazy(Generic[Out]):
    """The result of `load(*arguments)`, which is called when it is first needed; or `value`, if that was given.

    Pickled as the call, without the value: a model is sent to another process as its name and hardware.
    """

    def __init__(self, load: Callable[..., Out], *arguments: Any, value: Out | None = None) -> None:
        self._load, self._arguments, self._value = load, arguments, value

    def __call__(self) -> Out:
        if self._value is None:
            self._value = self._load(*self._arguments)
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return Lazy, (self._load, *self._arguments)


@dataclass
class FetchStage(Stage):
    """A step that fetches pictures by URL, from private addresses only with `allow_private`."""

    allow_private: bool = False
    workers: int = FETCHERS
    depth: int = 2 * FETCHERS
    _web: Any = None  # an HttpClient, between load and close

    def load(self) -> None:
        from vlmkit.io.http import HttpClient

        self._web = HttpClient(allow_private=self.allow_private)

    def close(self) -> None:
        if self._web is not None:
            self._web.close()


def map_ordered(stages: Sequence[Stage], items: Iterable[Any], executor: str = "threads") -> Iterator[Any]:
    """The result of the last of `stages` for each of `items`, or its Failed, in order of the items."""
    return EXECUTORS.load(executor)(stages, items)


def run_in_threads(stages: Sequence[Stage], items: Iterable[Any]) -> Iterator[Any]:
    """Run each stage in threads of this process, a batch stage in the thread that takes the results."""
    with ExitStack() as stack:
        for stage in stages:
            stage.load()
            stack.callback(stage.close)
            if isinstance(stage, BatchStage):
                results = _in_batches(items, stage)
            else:
                results = ahead(items, unless_failed(stage), stage.workers, stage.depth)
            items = stack.enter_context(closing(results))
        yield from items


def _in_batches(items: Iterable[Any], stage: BatchStage) -> Generator[Any, None, None]:
    rest = iter(items)
    while batch := list(islice(rest, stage.size())):
        results = iter(stage([item for item in batch if not isinstance(item, Failed)]))
        for item in batch:
            yield item if isinstance(item, Failed) else next(results)


def ahead(items: Iterable[In], work: Callable[[In], Out], workers: int, depth: int) -> Generator[Out, None, None]:
    """`work(item)` for each item in threads, in order, with at most `depth` results waiting."""
    waiting: deque[Future[Out]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
