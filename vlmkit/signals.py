"""SIGINT, SIGTERM and SIGHUP become an exception with the exit code, but not in the middle of a heavy import."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vlmkit.errors import Exit, Stopped

CODES = {
    signal.SIGINT: Exit.INTERRUPTED,
    signal.SIGTERM: Exit.TERMINATED,
    signal.SIGHUP: Exit.HUNG_UP,
}
_held = 0
_pending: Exit | None = None


def catch() -> None:
    """From now on these signals raise Stopped; one that is ignored on purpose, as nohup does, stays ignored."""
    for number in CODES:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    global _pending
    # A second signal must not break the clean-up that the first one started.
    for other in CODES:
        signal.signal(other, signal.SIG_IGN)
    _pending = CODES[signal.Signals(number)]
    if not _held:
        raise Stopped(_pending)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A signal that arrives inside is raised at the end: an import of C code torn half-way crashes other threads."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _pending is not None and not _held:
        raise Stopped(_pending)
