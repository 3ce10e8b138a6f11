"""Commands that wait for another process, or for FAISS: they say so, and signals end them soon."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jsonl

from vlmkit.index import Index, Writer
from vlmkit.index.maintenance import maintain, set_type
from vlmkit.index.verify import verify

pytestmark = pytest.mark.slow

SOON = 5.0  # seconds; two on a quiet machine


def write(folder: Path, count: int, dim: int) -> Path:
    rows = np.random.default_rng(0).standard_normal((count, dim)).astype("<f4")
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f2")
    with Writer(folder) as writer:
        for i, row in enumerate(rows):
            writer.add({"id": str(i), "model": "toy@0123456789ab", "embedding": row})
    return folder


@contextlib.contextmanager
def running(folder: Path, environment: dict, *arguments: str) -> Iterator[subprocess.Popen]:
    """`vlmkit index` beside, with one record to add."""
    command = ["vlmkit", "index", "-i", str(folder), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=folder.parent, **pipes) as process:
        try:
            assert process.stdin
            process.stdin.write(jsonl(embedded("new", [1.0] + [0.0] * 7)))
            process.stdin.close()
            yield process
        finally:
            process.kill()


def type_of(folder: Path) -> str:
    with Index(folder) as index:
        return index.state.type


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_codebooks_are_trained(tmp_path: Path, environment, number: int, code: int) -> None:
    folder = write(tmp_path / "i", 40_000, 128)  # whose codebooks take ten times as long as a signal may
    set_type(folder, "IVF16,Flat")
    maintain(folder, insist=True)
    command = ["vlmkit", "index", "-i", str(folder), "--type", "ivfpq"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while type_of(folder) != "ivfpq":
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(1)  # by now it trains
        with Index(folder) as index:
            assert index.ann and index.ann.info.type == "IVF16,Flat"
        assert process.poll() is None
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(60) == code
        assert time.monotonic() - start < SOON
        assert process.stderr and process.stderr.read() == b""
    assert not (folder / "ann.part").exists()
    with Index(folder) as index:
        verify(index)
        assert index.state.type == "IVF16,Flat" and index.ann
        assert index.ann.info.type == "IVF16,Flat"


def test_a_writer_that_waits_says_so_once(tmp_path: Path, environment) -> None:
    folder = write(tmp_path / "i", 10, 8)
    with Writer(folder) as other, running(folder, environment) as loud, running(folder, environment, "-q") as quiet:
        with other.transaction():
            assert loud.stderr and quiet.stderr
            line = loud.stderr.readline()  # it comes while the lock is held
            assert line == b"vlmkit: another process writes this index: waiting for it\n"
            time.sleep(1.5)
            assert loud.poll() is None and quiet.poll() is None
        assert (loud.wait(60), quiet.wait(60)) == (0, 0)
        assert (loud.stderr.read(), quiet.stderr.read()) == (b"", b"")
    with Index(folder) as index:
        verify(index)
        assert len(index) == 11


def test_a_signal_while_a_writer_waits(tmp_path: Path, environment) -> None:
    """What it has read is saved as soon as it can be, and the exit code is the signal's."""
    folder = write(tmp_path / "i", 10, 8)
    with Writer(folder) as other, running(folder, environment) as process:
        with other.transaction():
            assert process.stderr and b"waiting" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert process.poll() is None
        assert process.wait(SOON) == 143
    with Index(folder) as index:
        verify(index)
        assert index.get("new") is not None


RACE = """
import os, sys, time
from pathlib import Path
import numpy as np
from vlmkit.index import Writer

for turn in range(100):
    start, children = time.time() + 0.02, []
    for name in "ab":
        child = os.fork()
        if child == 0:
            code = 1
            try:
                time.sleep(max(0, start - time.time()))
                with Writer(Path(sys.argv[1]) / str(turn)) as writer:
                    writer.add({"id": name, "model": "toy@0", "embedding": np.ones(1, "f2")})
                code = 0
            except Exception as error:
                print(error)
            os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


def test_two_that_make_one_index_at_the_same_moment(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RACE, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for folder in tmp_path.iterdir():
        with Index(folder) as index:
            verify(index)
            assert len(index) == 2


def test_one_that_waits_for_a_build_says_so(tmp_path: Path, environment) -> None:
    folder = write(tmp_path / "i", 10, 8)
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with running(folder, environment, "--type", "hnsw") as process:
        assert process.stderr
        assert process.stderr.readline() == b"vlmkit: another process builds this index: waiting for it\n"
        assert process.poll() is None
        os.close(lock)
        assert process.wait(60) == 0 and process.stderr.read() == b""
    assert type_of(folder) == "hnsw"
