"""The command in processes forked from one that has imported what training needs, so that a start takes no time."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

PRELOAD = ["vlmkit.cli", "vlmkit.train.vlm.stage", "vlmkit.train.vlm.prefer", "vlmkit.train.plot", "peft", "tomli_w"]
PRELOAD += ["matplotlib.backends.backend_agg", "matplotlib.figure", "PIL.JpegImagePlugin"]
SECONDS = 120


class Running:
    """One command, under way in `folder`; its output stands in files."""

    def __init__(self, context, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob(".*.stdout")))
        self.arguments = arguments
        self.stdout, self.stderr = (folder / f".{number}.{name}" for name in ("stdout", "stderr"))
        for path in (self.stdout, self.stderr):
            path.touch()
        how = arguments, folder, self.stdout, self.stderr, environment
        self.process = context.Process(target=_command, args=how)
        self.process.start()

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Wait for something to happen while the command runs."""
        end = time.monotonic() + SECONDS
        while not true():
            assert self.process.is_alive() and time.monotonic() < end, self.stderr.read_text()
            time.sleep(0.002)

    def lines(self) -> int:
        """How many whole lines it has written."""
        return self.stdout.read_bytes().count(b"\n")

    def kill(self) -> None:
        """SIGKILL, and it must not have ended by itself."""
        self.process.kill()
        self.process.join(SECONDS)
        assert self.process.exitcode == -signal.SIGKILL

    def done(self, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        """Wait for the end. `code` is the exit code that is expected."""
        self.process.join(SECONDS)
        stdout, stderr = self.stdout.read_bytes(), self.stderr.read_bytes()
        assert self.process.exitcode == code, stderr.decode()
        assert b"Traceback" not in stderr
        return subprocess.CompletedProcess(self.arguments, code, stdout, stderr)


Start = Callable[..., Running]


def _command(arguments: list[str], folder: Path, stdout: Path, stderr: Path, environment: dict[str, str]) -> None:
    gc.freeze()  # what is imported already need not be looked through
    os.chdir(folder)
    os.environ.update(environment)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.argv = ["vlmkit", *arguments]
    from vlmkit.__main__ import run

    run()


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """Start a command in a folder: `start(folder, "train", …)`; it is killed at the end of the session."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)

        def begin(folder: Path, *arguments: object, environment: dict[str, str] | None = None) -> Running:
            running = Running(context, [*map(str, arguments)], folder, environment or {})
            stack.callback(running.process.kill)
            return running

        yield begin
