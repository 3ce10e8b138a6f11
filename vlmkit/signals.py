"""SIGINT, SIGTERM and SIGHUP become an exception with the exit code, but never in the middle of an import."""

import signal
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from types import FrameType
from typing import TypeVar

from vlmkit.errors import Exit, Stopped

CODES = {
    signal.SIGINT: Exit.INTERRUPTED,
    signal.SIGTERM: Exit.TERMINATED,
    signal.SIGHUP: Exit.HUNG_UP,
}
RETRY_SECONDS = 0.01

T = TypeVar("T")


def catch() -> None:
    """From now on these signals raise Stopped; a hang-up that is ignored on purpose, as nohup does, stays ignored."""
    for number in CODES:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def interruptible(work: Callable[[], T]) -> T:
    """What `work` returns or raises; run beside, as C code in the main thread keeps signals waiting to its end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result()


def _stop(number: int, frame: FrameType | None) -> None:
    code = CODES[signal.Signals(number)]
    # A second signal must not break the clean-up that the first one started.
    for other in CODES:
        signal.signal(other, signal.SIG_IGN)

    def stop(_number: int, frame: FrameType | None) -> None:
        if not _importing(frame):
            raise Stopped(code)
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)

    signal.signal(signal.SIGALRM, stop)
    stop(number, frame)


def _importing(frame: FrameType | None) -> bool:
    """Whether an import is under way below `frame`: C code torn out of its initialisation crashes later."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
