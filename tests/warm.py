"""The command in processes forked from one that has imported what models need, so that a start takes no time.

A server process imports the libraries once and forks for each request, which brings arguments, folder, environment and
the three standard streams. `python warm.py SOCKET` is the server.
"""

import array
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PRELOAD = [
    f"vlmkit.cli.{name}"
    for name in ["app", "embed", "index", "search", "classify", "caption", "ask", "train", "eval", "download"]
]
PRELOAD += ["vlmkit.train.vlm.run", "vlmkit.train.contrastive.run", "vlmkit.train.vlm.dpo", "peft"]
PRELOAD += ["open_clip", "onnxruntime", "faiss", "transformers.models.auto.processing_auto", "tomli_w"]
PRELOAD += ["matplotlib.backends.backend_agg", "matplotlib.figure", "PIL.JpegImagePlugin", "vlmkit.io.transport"]
SECONDS = 120
READ_AT_IMPORT = ("HF_", "HUGGINGFACE", "TRANSFORMERS", "PYTHON", "TOKENIZERS", "XLA", "LD_", "LC_", "LANG")


class Command:
    """One command, under way in a process of the server; `pid` is its process."""

    def __init__(
        self, server: str, arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(server)
        request = json.dumps([arguments, folder, environment]).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
        self._socket.sendmsg([struct.pack("=q", len(request))], rights)
        self._socket.sendall(request)
        self.pid = self._number()
        self.code: int | None = None

    def _number(self) -> int:
        return struct.unpack("=q", _exactly(self._socket, 8))[0]

    def wait(self, seconds: float | None = None) -> int:
        """The exit code, that of a signal as a negative number. Raises TimeoutError."""
        if self.code is None:
            self._socket.settimeout(seconds)
            self.code = self._number()
            self._socket.close()
        return self.code

    def is_alive(self) -> bool:
        if self.code is None:
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self.wait(0)
        return self.code is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.is_alive():
            os.kill(self.pid, number)


def _exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            raise ConnectionError("the server has ended")
        data += more
    return data


def serve(path: str) -> None:
    """Fork a process for each request, for ever."""
    import gc
    import importlib

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)  # it is there only when it listens
    for module in PRELOAD:
        importlib.import_module(module)
    gc.freeze()  # what is imported already need not be looked through by each process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _watch(connection)
        connection.close()


def _watch(connection: socket.socket) -> None:
    """Run the command that a connection asks for in a process of its own, and send its number and exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    arguments, folder, environment = json.loads(_exactly(connection, struct.unpack("=q", size)[0]))
    pid = os.fork()
    if pid == 0:
        connection.close()
        _run(arguments, folder, environment, streams)
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(OSError):  # nobody waits for it any more
        connection.sendall(struct.pack("=q", pid))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(struct.pack("=q", code))
    os._exit(0)


def _run(arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    import atexit
    import traceback

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False, errors=errors)  # noqa: SIM115 - those of the server are others
        for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["vlmkit", *arguments]
    code = 1
    try:
        from vlmkit.__main__ import run

        run()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # as Python itself would tell it
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Server:
    """The server of this test process; it starts with the first command and ends with the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = str(folder / "server")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is not None:
            return
        environment = os.environ | {"PYTHONWARNINGS": "default"}
        self._process = subprocess.Popen([sys.executable, __file__, self.socket], env=environment)
        while not os.path.exists(self.socket):
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def at_import(environment: dict[str, str]) -> dict[str, str]:
    """What libraries read when they are imported: a process of another environment cannot stand for one of this."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


class Running:
    """One command, under way in `folder`; its output stands in files."""

    def __init__(
        self, server: Server, arguments: list[str], folder: Path, environment: dict[str, str], stdin: bytes
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.arguments = arguments
        streams = Path(tempfile.mkdtemp(dir=server.folder))
        self.stdin, self.stdout, self.stderr = (streams / name for name in ("stdin", "stdout", "stderr"))
        for path, data in ((self.stdin, stdin), (self.stdout, b""), (self.stderr, b"")):
            path.write_bytes(data)
        server.start()
        own = {name: value for name, value in os.environ.items() if not name.startswith("VLMKIT_")}
        own |= environment or {"VLMKIT_CONFIG": os.devnull}
        own |= {"HF_HUB_OFFLINE": "1"}
        with open(self.stdin, "rb") as a, open(self.stdout, "ab") as b, open(self.stderr, "ab") as c:
            self.process = Command(server.socket, arguments, str(folder), own, [a.fileno(), b.fileno(), c.fileno()])

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
        assert self.process.wait(SECONDS) == -signal.SIGKILL

    def done(self, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        """Wait for the end. `code` is the exit code that is expected."""
        found = self.process.wait(SECONDS)
        stdout, stderr = self.stdout.read_bytes(), self.stderr.read_bytes()
        assert found == code, stderr.decode()
        assert b"Traceback" not in stderr
        return subprocess.CompletedProcess(self.arguments, code, stdout, stderr)


Start = Callable[..., Running]
Warm = Callable[..., subprocess.CompletedProcess[bytes]]


if __name__ == "__main__":
    serve(sys.argv[1])
