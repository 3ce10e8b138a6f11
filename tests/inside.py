"""A command in this process, as if it were one of its own: arguments, folder, environment and streams are those given.

What a command changes in its process (streams, folder, environment, signals, warnings) is put back at its end.
"""

import io
import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

from vlmkit.errors import CODES, Stopped, catch


def run(
    arguments: list[str], folder: Path, environment: dict[str, str], stdin: bytes
) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end."""
    with ExitStack() as stack:
        streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        streams[0].write(stdin)
        streams[0].seek(0)
        with _streams([file.fileno() for file in streams]), _surroundings(folder, environment):
            code = _main(arguments)
        out, err = (_content(file) for file in streams[1:])
    return subprocess.CompletedProcess(["vlmkit", *arguments], code, out, err)


def on_terminal(
    arguments: list[str], folder: Path, environment: dict[str, str], columns: int
) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end whose standard input and output are a terminal with so many columns."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, columns))
    shown: list[bytes] = []
    reader = Thread(target=lambda: shown.extend(iter(partial(_until_closed, master), b"")))
    reader.start()
    with tempfile.TemporaryFile() as errors:
        with _streams([slave, slave, errors.fileno()]), _surroundings(folder, environment):
            code = _main(arguments)
        os.close(slave)
        reader.join()
        os.close(master)
        return subprocess.CompletedProcess(["vlmkit", *arguments], code, b"".join(shown), _content(errors))


def _until_closed(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except OSError:  # the other end was closed
        return b""


def _main(arguments: list[str]) -> int:
    from vlmkit.cli.app import main

    try:
        catch()
        code = int(main(arguments))
    except Stopped as stop:
        code = int(stop.code)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _content(file: io.BufferedRandom) -> bytes:
    file.seek(0)
    return file.read()


@contextmanager
def _streams(numbers: list[int]) -> Iterator[None]:
    kept = [os.dup(number) for number in (0, 1, 2)]
    before = sys.stdin, sys.stdout, sys.stderr
    for number, stream in zip(numbers, (0, 1, 2), strict=True):
        os.dup2(number, stream)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False, errors=errors)  # noqa: SIM115 - flushed by the command, put back below
        for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
    )
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for number, stream in zip(kept, (0, 1, 2), strict=True):
            os.dup2(number, stream)
            os.close(number)


@contextmanager
def _surroundings(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    here, variables = os.getcwd(), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (*CODES, signal.SIGALRM)}
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(variables)
        for number, handler in handlers.items():
            signal.signal(number, handler)
