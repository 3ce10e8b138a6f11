"""Errors and exit codes: what every command may end in, decided in one place.

SIGINT, SIGTERM and SIGHUP become an exception with the exit code, but never in the middle of an import.
"""

import signal
import textwrap
from collections.abc import Callable
from enum import IntEnum
from threading import Thread
from types import FrameType
from typing import TypeVar


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    NOTHING_FOUND = 1
    FATAL = 2
    SOME_FAILED = 3
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class VlmkitError(Exception):
    """A fatal error: the command ends with exit code 2 and no file changed.

    `what` went wrong and the `remedy` become one line, `vlmkit: what: remedy`.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


def check_installed(what: str, requirement: str, *modules: str) -> None:
    """Raise VlmkitError where one of `modules`, which `what` needs, is missing; pip brings them by `requirement`."""
    from importlib.util import find_spec

    for module in modules:
        if find_spec(module) is None:
            quoted = f"'{requirement}'" if "[" in requirement else requirement
            raise VlmkitError(f"{what} needs the package {module}", f"pip install {quoted}")


class Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived. Not an Exception, so that only clean-up code sees it."""

    def __init__(self, code: Exit) -> None:
        super().__init__(code)
        self.code = code


def first_line(error: Exception) -> str:
    """The first line of a library's error without its full stop, for use inside a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def reason_of(error: object, limit: int = 300) -> str:
    """A library's error as one line without its full stop, for use inside a message; a longer one ends with a whole
    sentence, or with a whole word and three dots."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > limit:
        sentences = text[:limit].rpartition(". ")[0]
        text = sentences or textwrap.shorten(text, limit, placeholder=" …")
    return text.rstrip(".")


def one_line(text: str) -> str:
    """`text` with line breaks, control characters and undecodable bytes escaped, so that it prints as one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


CODES = {
    signal.SIGINT: Exit.INTERRUPTED,
    signal.SIGTERM: Exit.TERMINATED,
    signal.SIGHUP: Exit.HUNG_UP,
}
RETRY_SECONDS = 0.01

T = TypeVar("T")


def catch() -> None:
    """Have these signals raise Stopped; a hang-up that is already ignored, as under nohup, stays ignored."""
    for number in CODES:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def interruptible(work: Callable[[], T]) -> T:
    """Run `work` in a thread, so that a signal need not wait for C code to end; returns or raises what it does."""
    from concurrent.futures import Future

    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again in the thread that waits
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
    """Whether an import is under way below `frame`: a module interrupted in its initialisation may crash later."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
