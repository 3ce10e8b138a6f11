"""The command in processes forked from one that has imported what models need, so that a start takes no time."""

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

PRELOAD = ["vlmkit.cli.app", "vlmkit.train.vlm.run", "vlmkit.train.vlm.dpo", "vlmkit.train.trainer", "peft", "tomli_w"]
PRELOAD += ["vlmkit.train.contrastive", "open_clip", "onnxruntime", "transformers.models.auto.processing_auto"]
PRELOAD += ["matplotlib.backends.backend_agg", "matplotlib.figure", "PIL.JpegImagePlugin"]
SECONDS = 120


class Running:
    """One command, under way in `folder`; its output stands in files."""

    def __init__(self, context, arguments: list[str], folder: Path, environment: dict[str, str], stdin: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob(".*.stdout")))
        self.arguments = arguments
        self.stdin, self.stdout, self.stderr = (folder / f".{number}.std{name}" for name in ("in", "out", "err"))
        for path, data in ((self.stdin, stdin), (self.stdout, b""), (self.stderr, b"")):
            path.write_bytes(data)
        how = arguments, folder, [self.stdin, self.stdout, self.stderr], environment
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
Warm = Callable[..., subprocess.CompletedProcess[bytes]]


def _command(arguments: list[str], folder: Path, streams: list[Path], environment: dict[str, str]) -> None:
    gc.freeze()  # what is imported already need not be looked through
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith("VLMKIT_")]:
        del os.environ[name]
    os.environ.update(environment)
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - multiprocessing has put another there
    sys.argv = ["vlmkit", *arguments]
    from vlmkit.__main__ import run

    run()


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a command in a folder: `start(folder, "train", …)`; it is killed at the end of the session."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)

        def begin(
            folder: Path, *arguments: object, environment: dict[str, str] | None = None, stdin: bytes = b""
        ) -> Running:
            running = Running(context, [*map(str, arguments)], folder, environment or {}, stdin)
            stack.callback(running.process.kill)
            return running

        yield begin


@pytest.fixture
def warm(start: Start, tmp_path: Path, environment: dict[str, str]) -> Warm:
    """As `vlmkit`, the installed command, but for its start."""

    def run(*arguments: object, code: int = 0, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return start(tmp_path, *arguments, environment=environment, stdin=stdin).done(code)

    return run
