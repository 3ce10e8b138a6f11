"""Damaged and hostile index folders: one clear line, never a crash, never another program's data changed."""

import contextlib
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import faiss
import numpy as np
import pytest
from helpers import embedded, jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.errors import VlmkitError
from vlmkit.index import Index, Writer
from vlmkit.index.maintenance import maintain, set_type
from vlmkit.index.verify import verify

DIM = 8


def unit(i: int) -> np.ndarray:
    return np.eye(DIM, dtype=np.float32)[i % DIM]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with an HNSW graph, whose damage would make FAISS read outside its memory."""
    folder = tmp_path_factory.mktemp("sound") / "i"
    with Writer(folder) as writer:
        for i in range(200):
            writer.add({"id": str(i), "model": "toy@0", "embedding": unit(i)})
    set_type(folder, "hnsw")
    maintain(folder, insist=True)
    return folder


def use(folder: Path) -> None:
    """All that reads, then a write; VlmkitError is the one exception that may come."""
    for work in (Index.info, verify, lambda index: index.search(unit(0)[None], 3), lambda i: list(i.dump())):
        try:
            with Index(folder) as index:
                work(index)
        except VlmkitError as error:
            assert str(error)
    try:
        with Writer(folder) as writer:
            writer.add({"id": "new", "model": "toy@0", "embedding": unit(0)})
    except VlmkitError as error:
        assert str(error)


@settings(max_examples=20)
@given(data=st.data())
def test_damaged_files(sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Flipped, cut, swapped and missing files, in any mixture; times stay as if nothing had happened, or do not."""
    folder = tmp_path_factory.mktemp("damaged") / "i"
    shutil.copytree(sound, folder)
    names = sorted(p.name for p in folder.iterdir())
    for _ in range(data.draw(st.integers(1, 3))):
        path = folder / data.draw(st.sampled_from(names))
        content = bytearray(path.read_bytes() if path.exists() else b"")
        match data.draw(st.sampled_from(["flip", "cut", "swap", "missing", "noise"])):
            case "flip" if content:
                for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=20)):
                    content[place] ^= data.draw(st.integers(1, 255))
                path.write_bytes(content)
            case "cut":
                path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
            case "swap":
                path.write_bytes((sound / data.draw(st.sampled_from(names))).read_bytes())
            case "missing":
                path.unlink(missing_ok=True)
            case _:
                path.write_bytes(data.draw(st.binary(max_size=300)))
    with patch("vlmkit.index.store.LOCK_SECONDS", 0.5):  # damage may look like a lock, which is waited for
        use(folder)


def other_database(folder: Path) -> None:
    (folder / "index.sqlite").unlink()
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as db, db:
        db.execute("CREATE TABLE recipes (name TEXT)")
        db.execute("INSERT INTO recipes VALUES ('soup')")
        db.execute("PRAGMA user_version = 2")


def absurd_state(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as db, db:
        db.execute("UPDATE state SET slots = 1 << 40, count = -1, dim = 'many'")


def two_states(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as db, db:
        db.execute("INSERT INTO state SELECT * FROM state")


def records_of_nonsense(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as db, db:
        db.execute("UPDATE records SET record = ?", (pickle.dumps(os.getcwd),))


def other_bitmap(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as db, db:
        db.execute("UPDATE live SET bitmap = zeroblob(25)")


def slots_that_are_not_there(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as db, db:
        db.execute("UPDATE records SET slot = slot + 1000000000000")


def another_graph(folder: Path) -> None:
    """A well-formed FAISS file of the same name with links to slots that are not there."""
    (path,) = folder.glob("ann-*.faiss")
    graph = faiss.index_factory(DIM, "HNSW32,SQfp16", faiss.METRIC_INNER_PRODUCT)
    graph.add(np.eye(DIM, dtype=np.float32).repeat(25, axis=0))
    links = faiss.vector_to_array(graph.hnsw.neighbors)
    links[:] = 1 << 30
    faiss.copy_array_to_vector(links, graph.hnsw.neighbors)
    faiss.write_index(graph, str(path))


def flipped_graph(folder: Path) -> None:
    """A bit rots and the file's time does not tell: --verify reads all of it."""
    (path,) = folder.glob("ann-*.faiss")
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [
        other_database,
        absurd_state,
        two_states,
        records_of_nonsense,
        other_bitmap,
        slots_that_are_not_there,
        another_graph,
        flipped_graph,
    ],
)
def test_hostile_folders_by_the_command(sound: Path, vlmkit, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    shutil.copytree(sound, tmp_path / "i")
    vlmkit("index", "-i", "./i", "--verify")
    damage(tmp_path / "i")
    before = (tmp_path / "i/index.sqlite").read_bytes()
    done = vlmkit("index", "-i", "./i", "--verify", code=2)
    assert done.stderr.count(b"\n") == 1
    if damage in (other_database, absurd_state, two_states):
        vlmkit("index", "-i", "./i", stdin=jsonl(embedded("a", list(map(float, unit(0))), "toy@0")), code=2)
    if damage is other_database:
        assert (tmp_path / "i/index.sqlite").read_bytes() == before


def test_a_damaged_graph_is_built_again(sound: Path, tmp_path: Path, vlmkit) -> None:
    """The line says how, and that works: the graph is derived from vectors that are sound."""
    shutil.copytree(sound, tmp_path / "i")
    another_graph(tmp_path / "i")
    with Index(tmp_path / "i") as index, pytest.raises(VlmkitError, match="--type"):
        index.search(unit(0)[None], 3)
    vlmkit("index", "-i", "./i", "--type", "hnsw")
    vlmkit("index", "-i", "./i", "--verify")


def test_a_copy_with_new_times_is_used(sound: Path, tmp_path: Path) -> None:
    """Then the checksum shows that the graph is the one that was written."""
    shutil.copytree(sound, tmp_path / "i", copy_function=shutil.copyfile)
    with Index(tmp_path / "i") as index:
        assert len(index.search(unit(0)[None], 3)[0]) == 3
