"""Other processes that read, decode and tokenize ahead of the steps: the same batches for any number of them."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from vlmkit.errors import VlmkitError
from vlmkit.io.executor import FETCHERS, ahead
from vlmkit.io.http import FetchError
from vlmkit.io.remote import RemotePart
from vlmkit.io.sources import PictureError

AHEAD = 4  # items that each process reads ahead, at least
TRIAL_SECONDS = 2.0  # in which the rate of a loader is measured
T = TypeVar("T")
U = TypeVar("U")
DIED = "DataLoader worker", "shared memory"  # in torch's words


def loader_of(dataset: Dataset[Any], *, workers: int, pin: bool, depth: int = AHEAD, **how: Any) -> DataLoader:
    """A DataLoader with `workers` processes, each `depth` items ahead; with 0 of them this process reads.

    It draws nothing from torch's own random numbers, which a resumed run would not draw again.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes are forked, each tokenizes for itself
    return DataLoader(
        dataset,
        num_workers=workers,
        prefetch_factor=depth if workers else None,
        multiprocessing_context="fork" if workers else None,  # what Python 3.14 takes instead pickles `dataset`
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),
        pin_memory=pin,
        **how,
    )


def _leave_signals_to_the_parent(number: int) -> None:
    """A signal goes to all processes of a group, and only the parent tells of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, lambda *_: os._exit(0))


def at_once(work: Callable[[T], U], items: Sequence[T], rows: Iterable[Any]) -> list[U]:
    """`work(item)` for each; where pictures of the `rows` are on the web, for several at the same time."""
    if any(isinstance(picture, RemotePart) for row in rows for picture in row.pictures):
        return list(ahead(items, work, FETCHERS, len(items)))
    return [work(item) for item in items]


def unreadable(name: str, error: PictureError) -> VlmkitError:
    """What ends a run whose picture `name` cannot be read any more."""
    if isinstance(error, FetchError):
        return VlmkitError(f"{name}: {error}", "use --resume once the server sends it as before")
    return VlmkitError(f"{name}: {error}", "fix or remove the picture, then train again")


@contextmanager
def explain_lost_worker() -> Iterator[None]:
    """Raise VlmkitError where a process that reads ahead has died; torch tells it wherever this one is just then."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in DIED):
            raise
        what = "a process that reads the data was killed, as happens without enough memory"
        raise VlmkitError(what, "use fewer --workers, in a container a larger --shm-size, then --resume") from None


def rate_of(batches: Iterable[Any], count: Callable[[Any], Any]) -> Any:
    """What `count` finds in `batches`, a second, over TRIAL_SECONDS behind the first one; 0 where that is all."""
    total: Any = 0
    rest = iter(batches)
    next(rest, None)
    start = time.perf_counter()
    seconds = 1.0
    for batch in rest:
        total = total + count(batch)
        if (seconds := time.perf_counter() - start) > TRIAL_SECONDS:
            break
    return total / seconds
