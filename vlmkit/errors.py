"""Errors and exit codes: what every command may end in, decided in one place."""

from enum import IntEnum


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


class Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived. Not an Exception, so that only clean-up code sees it."""

    def __init__(self, code: Exit) -> None:
        super().__init__(code)
        self.code = code


def first_line(error: Exception) -> str:
    """What a library's error says first, without its full stop, to stand inside a line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def one_line(text: str) -> str:
    """`text` with line breaks, control characters and undecodable bytes escaped, so that it prints as one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
