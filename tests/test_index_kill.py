"""SIGKILL inside the commit, a full disk, several writers: what was committed stays, and nothing half is left.

A small driver runs the product's own code in children that count the steps towards the disk (fsync, rename, delete,
FAISS's write, SQL statements and the rows inside them) and kill themselves at the n-th, for every n of a commit.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jsonl, records

from vlmkit.errors import Stopped
from vlmkit.index import Index, Writer
from vlmkit.index.maintenance import maintain, set_type
from vlmkit.index.verify import verify
from vlmkit.io.blobs import Block
from vlmkit.io.records import dumps

pytestmark = pytest.mark.slow

DRIVER = """
import os, shutil, signal, sqlite3, sys, traceback
import faiss, numpy as np
from pathlib import Path
from vlmkit.errors import Stopped
from vlmkit.index import Index, Writer
from vlmkit.index import maintenance as up

job, start, out, other = sys.argv[1], *map(Path, sys.argv[2:])
steps = last = 0

def step():
    global steps
    steps += 1
    if steps == last:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(function):
    def call(*a, **k):
        step()
        return function(*a, **k)
    return call

class Connection(sqlite3.Connection):
    def execute(self, *a):
        step()
        return super().execute(*a)
    def executemany(self, sql, rows):
        def each():
            for i, row in enumerate(rows):
                if i == 1:
                    step()
                yield row
        step()
        return super().executemany(sql, each())

for name in ("fsync", "replace", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
faiss.write_index = counted(faiss.write_index)
connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: connect(*a, factory=Connection, **k)

def rows(names, seed):
    numbers = np.random.default_rng(seed).standard_normal((len(names), 8)).astype("f4")
    numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
    return [{"id": n, "model": "toy@0", "embedding": v} for n, v in zip(names, numbers)]

def add(folder, names, seed):
    with Writer(folder) as writer:
        for row in rows(names, seed):
            writer.add(row)

old = [f"old{i}" for i in range(40)]

def work(folder):
    if job == "upsert":
        add(folder, [f"new{i}" for i in range(5)] + old[:3], 1)
    elif job == "compact":
        add(folder, old + ["new"], 1)
    elif job == "remove":
        with Writer(folder) as writer:
            writer.remove([(key, None) for key in old[10:]])
    elif job == "merge":
        with Writer(folder) as writer, Index(other) as source:
            writer.merge([source])
    elif job == "build":
        up.set_type(folder, "hnsw")
        up.maintain(folder, insist=True)

while True:
    last += 1
    shutil.copytree(start, out / str(last))  # times are kept
    child = os.fork()
    if child == 0:
        try:
            work(out / str(last))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):  # it came to the end without reaching that step
        sys.exit(os.WEXITSTATUS(status))
    assert os.WTERMSIG(status) == signal.SIGKILL
"""


def content(folder: Path) -> dict[str, bytes]:
    """Every id with its stored vector; the whole index is checked."""
    with Index(folder) as index:
        verify(index)
        return {record["id"]: index.vectors[slot].tobytes() for slot, record in index.records()}


def unit(i: int) -> np.ndarray:
    return np.eye(8, dtype=np.float32)[i % 8]


def write(folder: Path, names: list[str]) -> Path:
    with Writer(folder) as writer:
        for i, name in enumerate(names):
            writer.add({"id": name, "model": "toy@0", "embedding": unit(i)})
    return folder


@pytest.mark.parametrize("job", ["upsert", "compact", "remove", "merge", "build"])
def test_sigkill_inside_the_commit(tmp_path: Path, job: str) -> None:
    start = write(tmp_path / "start", [f"old{i}" for i in range(40)])
    set_type(start, "ivf")
    maintain(start, insist=True)
    other, out = write(tmp_path / "other", [f"other{i}" for i in range(30)]), tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, job, start, out, other], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *killed, whole = sorted(out.iterdir(), key=lambda folder: int(folder.name))
    before, after = content(start), content(whole)
    unfinished = 0
    for folder in killed:
        found = content(folder)
        with Index(folder) as index:
            kind = index.info()["type"]
        done = found == after and (job != "build" or kind == "hnsw")
        assert done or (found == before and kind in ("ivf", "flat")), folder
        unfinished += not done
        write(folder, ["next"])  # the next write works, and clears up
        assert content(folder) == found | {"next": unit(0).astype("<f2").tobytes()}
        assert len(list(folder.glob("vectors-*"))) == 1 and len(list(folder.glob("ann-*.faiss"))) <= 1
    assert unfinished > 5


def test_a_full_disk(vlmkit, installed, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the end of the disk: the write fails in the middle."""
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(50)))
    before = content(tmp_path / "i")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = installed("index", "-i", "./i", stdin=jsonl(*many(9000, 50)), code=2, preexec_fn=small)
    assert done.stderr.count(b"\n") == 1
    assert content(tmp_path / "i") == before
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(100, 50)))
    assert len(content(tmp_path / "i")) == 150


def many(count: int, start: int = 0) -> list[dict]:
    numbers = np.random.default_rng(start).standard_normal((count, 8))
    return [embedded(f"r{start + i:06}", [round(x, 6) for x in row]) for i, row in enumerate(numbers)]


def test_no_space_for_the_approximate_index(vlmkit, installed, tmp_path: Path) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(2000)))
    before = content(tmp_path / "i")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = installed("index", "-i", "./i", "--type", "hnsw", code=2, preexec_fn=small)
    assert done.stderr.count(b"\n") == 1 and b"space" in done.stderr
    assert content(tmp_path / "i") == before


def test_disjoint_writers_and_readers(tmp_path: Path, environment) -> None:
    """Four processes write their own ids in many commits, two with a rebuild, while readers check what they see."""
    rows = {n: many(400, 10_000 * n) for n in range(4)}
    for n, part in rows.items():
        (tmp_path / f"{n}.jsonl").write_bytes(jsonl(*part))
    line = (
        "for k in 0 100 200 300; do tail -n +$((k+1)) {n}.jsonl | head -100 | vlmkit index -i ./i {t} || exit 9; done"
    )
    running = [
        subprocess.Popen(
            ["bash", "-c", line.format(n=n, t="--type hnsw" if n % 2 else "")], cwd=tmp_path, env=environment
        )
        for n in rows
    ]
    looks = seen = 0
    while any(process.poll() is None for process in running):
        if (tmp_path / "i/index.sqlite").exists() and looks + 1:
            done = subprocess.run(
                ["vlmkit", "index", "-i", "./i", "--info"], cwd=tmp_path, env=environment, capture_output=True
            )
            if done.returncode == 0:
                (info,) = records(done.stdout)
                assert info["count"] >= seen and info["count"] % 100 == 0
                seen, looks = info["count"], looks + 1
            else:
                assert b"is empty" in done.stderr and not seen, done.stderr
    assert looks and [process.returncode for process in running] == [0] * 4
    found = content(tmp_path / "i")
    expected = {r["id"]: np.array(r["embedding"], np.float32) for part in rows.values() for r in part}
    assert set(found) == set(expected)
    for key, vector in expected.items():
        assert np.allclose(np.frombuffer(found[key], "<f2"), vector / np.linalg.norm(vector), atol=1e-3)


def test_a_writer_gives_up_on_a_lock_in_one_line(tmp_path: Path) -> None:
    """The lock is held by somebody else; the minute of waiting is cut to a moment in the child."""
    with Writer(tmp_path / "i") as writer:
        writer.add({"id": "a", "model": "toy@0", "embedding": np.eye(8, dtype=np.float32)[0]})
    code = """
import sys
from vlmkit.index import store
store.LOCK_SECONDS = 0.2
from vlmkit.cli.app import main
sys.exit(main(["index", "-i", "./i"]))
"""
    holder = Writer(tmp_path / "i")
    with holder.transaction():
        started = time.monotonic()
        row = json.dumps(embedded("b", [1.0] + [0.0] * 7, "toy@0")).encode()
        done = subprocess.run([sys.executable, "-c", code], input=row, capture_output=True, cwd=tmp_path)
        assert time.monotonic() - started < 50
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1) and b"another writer" in done.stderr
    holder.__exit__(None, None, None)
    assert set(content(tmp_path / "i")) == {"a"}


def stopped_at(last: int, folder: Path, parts: list[dict | Block], added: list[str]) -> bool:
    """Whether Stopped came, raised before the `last`-th line of the writer; `added` names what it had taken by then."""
    lines = 0

    def trace(frame, event: str, argument: object):
        nonlocal lines
        if not frame.f_code.co_filename.endswith("index/writer.py"):
            return None
        lines += event == "line"
        if lines == last:
            sys.settrace(None)
            raise Stopped(130)
        return trace

    try:
        with Writer(folder) as writer:
            sys.settrace(trace)
            for record in writer.add_all(parts):
                added.append(record["id"])
            writer.commit()
            sys.settrace(None)
        return False
    except Stopped:
        return True


def block(rows: list[dict]) -> Block:
    plain = [{key: value for key, value in row.items() if key != "embedding"} for row in rows]
    return Block([dumps(row) for row in plain], plain, np.stack([row["embedding"] for row in rows]))


@pytest.mark.parametrize("size", [1, 2])
def test_a_signal_at_any_line_loses_nothing(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmkit.index.writer.COMMIT_RECORDS", 3)
    names = [f"r{i}" for i in range(8)]
    last, stopped = 1, True
    while stopped:
        folder, added = tmp_path / str(last), []
        rows = [{"id": name, "model": "toy@0", "embedding": unit(i)} for i, name in enumerate(names)]
        parts = rows if size == 1 else [block(rows[i : i + size]) for i in range(0, len(rows), size)]
        stopped = stopped_at(last, folder, parts, added)
        if added:
            assert set(added) <= set(content(folder)) <= set(names[: len(added) + size])
            with Index(folder) as index:
                assert index.state.slots == index.state.count, "written once"
        last += 1
    assert last > 50 and added == names
