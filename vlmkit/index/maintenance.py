"""Build FAISS's index over the slots of an index, and measure how thorough its searches must be.

prune: which records of an index have lost their file.

upkeep: build the approximate index when its type or the records that came since say that it is due.

It is built beside the index, without a lock that would keep writers waiting: vectors of a generation never change. One
process builds at a time. Committed it is like records: the file is renamed and named in one SQLite transaction.

verify: every invariant of an index.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.errors import VlmkitError, interruptible
from vlmkit.index import exact
from vlmkit.index.ann import RESERVE, effort_of, set_effort
from vlmkit.index.reader import Index
from vlmkit.index.store import (
    NOTED_SECONDS,
    Built,
    State,
    built_path,
    damaged,
    read_live,
    silent,
    sync_folder,
    told,
    write_built,
    write_state,
)
from vlmkit.index.types import Choice, choose, is_lossless
from vlmkit.index.writer import Writer
from vlmkit.io.sources import is_gone

if TYPE_CHECKING:
    import faiss
    import numpy as np

    from vlmkit.index.reader import Index


TRAIN_ROWS = 65_536  # at least 64 for each list of an IVF
ROWS_A_LIST = 64
CODEWORDS = 256  # of product quantisation with 8 bits, which wants more rows than that to be done soon
ADD_ROWS = 16_384
QUERIES = 200
RECALL = 0.98  # measured on a sample: 0.95 holds for queries like it
MAX_EFFORT = 4096
SEED = 0


class Trained(NamedTuple):
    """A finished file, its SHA-256, the slots it covers, and the effort with its measured recall@10."""

    file: Path
    checksum: str
    covered: int
    effort: int
    recall: float


def train(factory: str, index: "Index", file: Path) -> Trained:
    """Build the index that FAISS's `factory` string says over all slots, into `file`. Raises VlmkitError."""
    import faiss
    import numpy as np

    vectors = index.vectors
    try:
        built = faiss.index_factory(index.state.dim, factory, faiss.METRIC_INNER_PRODUCT)
        _train(built, vectors)
        for start in range(0, len(vectors), ADD_ROWS):
            rows = vectors[start : start + ADD_ROWS].astype(np.float32)
            if isinstance(built, faiss.IndexIDMap):
                built.add_with_ids(rows, np.arange(start, start + len(rows)))
            else:
                built.add(rows)
        effort, recall = _measured(built, factory, index)
    except (RuntimeError, MemoryError) as error:
        reason = re.sub(r".* at \S+: ", "", " ".join(str(error).split())) or "not enough memory"
        what = f"{factory} cannot be built over {len(vectors)} vectors ({reason})"
        raise VlmkitError(what, "choose another --type; until then searches are exact") from None
    return Trained(file, _write(built, file), len(vectors), effort, recall)


def _train(built: "faiss.Index", vectors: "np.ndarray") -> None:
    import faiss
    import numpy as np

    ivf = faiss.try_extract_index_ivf(built)
    if isinstance(built, faiss.IndexIVFScalarQuantizer) and built.sq.qtype == built.sq.QT_fp16:
        built.by_residual = False  # so that the codes are the stored numbers
    for part in (built, ivf, getattr(ivf, "pq", None), getattr(built, "pq", None)):
        if part is not None and hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1  # fewer only make FAISS print warnings
    count = min(len(vectors), max(TRAIN_ROWS, ROWS_A_LIST * (ivf.nlist if ivf else 0)))
    picked = np.sort(np.random.default_rng(SEED).choice(len(vectors), count, replace=False))
    rows = vectors[picked].astype(np.float32)
    built.train(rows if len(rows) >= CODEWORDS else np.resize(rows, (4 * CODEWORDS, rows.shape[1])))


def _measured(built: "faiss.Index", factory: str, index: "Index") -> tuple[int, float]:
    """The least effort (a power of two) that finds enough of the true ten nearest, and the share it finds.

    Half of the queries are stored vectors with noise, half lie between two stored vectors, as texts do: far from all.
    """
    import numpy as np

    queries = _queries(index.vectors)
    k = min(10, len(index.vectors))
    _, truth = exact.search(index.vectors, queries, k)
    count = min(len(index.vectors), k if is_lossless(factory) else RESERVE * k)
    name, recall = effort_of(built), 0.0
    for effort in [2**i for i in range(4, MAX_EFFORT.bit_length())] if name else [0]:
        set_effort(built, effort)
        _, found = built.search(queries, count)
        recall = float(np.mean([np.isin(row, near).mean() for row, near in zip(truth, found, strict=True)]))
        if recall >= RECALL:
            break
    return effort, recall


def _queries(vectors: "np.ndarray") -> "np.ndarray":
    import numpy as np

    rng = np.random.default_rng(SEED)
    one, other = (vectors[rng.integers(len(vectors), size=QUERIES)].astype(np.float32) for _ in range(2))
    noise = rng.standard_normal(one.shape).astype(np.float32) / (2 * one.shape[1] ** 0.5)
    queries = np.where(np.arange(QUERIES)[:, None] % 2, one + noise, one + other)
    return queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-6)


def _write(built: "faiss.Index", file: Path) -> str:
    """Write FAISS's index to `file`, whole and lasting; its SHA-256."""
    import faiss

    try:
        faiss.write_index(built, str(file))
    except RuntimeError as error:
        file.unlink(missing_ok=True)
        what = f"cannot write {file} ({str(error).rpartition(':')[2].strip()})"
        raise VlmkitError(what, "free some space; until then searches are exact") from None
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_folders(folders: list[str], *, force: bool) -> None:
    """Raise VlmkitError for a folder that is missing: it may only not be mounted."""
    for folder in folders:
        if not os.path.exists(folder) and not force:
            raise VlmkitError(f"{folder} is missing, so nothing under it is pruned", "mount it, or say --force")


def lost(index: Index, folders: list[str], *, force: bool) -> list[tuple[str, bytes | None]]:
    """Ids and lines of the records under `folders` whose file, tar or member of a tar is gone.

    Raises VlmkitError where these are more than half of the records under one folder, unless you `force`.
    """
    found: dict[str, bytes | None] = {}
    for folder in folders:
        root = os.path.join(os.path.abspath(folder), "")
        total, gone = 0, {}
        for slot, key, line in index.lines():
            image = index.parsed(line, slot).get("image")
            if isinstance(image, str) and image.startswith(root):
                total += 1
                if is_gone(image):
                    gone[key] = line
        if 2 * len(gone) > total and not force:
            what = f"{len(gone)} of the {total} records under {folder} have lost their file, too many to be pruned"
            raise VlmkitError(what, "look whether all of it is there, then say --force")
        found |= gone
    return list(found.items())


TAIL_SLOTS = 10_000  # searched exactly in a millisecond; and a quarter of what is covered
TAIL_SHARE = 4
TRIES = 3


def set_type(folder: Path, wanted: str, note: Callable[[str], None] = silent) -> None:
    """Have the index be of that type from now on; `maintenance` builds it."""
    with Writer(folder, wanted, note) as writer, writer.transaction() as (db, state):
        write_state(db, state)


def change_type(folder: Path, wanted: str, before: str, note: Callable[[str], None] = silent) -> None:
    """Have the index be of that type, and build it; where that cannot be done it keeps the one `before`."""
    set_type(folder, wanted, note)
    try:
        maintain(folder, insist=True, note=note)
    except BaseException:
        set_type(folder, before)
        raise


def maintain(folder: Path, *, insist: bool = False, note: Callable[[str], None] = silent) -> None:
    """Build the approximate index, or drop it, if that is due.

    Raises VlmkitError where it cannot be built; unless you `insist`, that only means that searches stay exact, as
    does another process that is at it already; `note` hears of waiting for that.
    """
    with told(folder), _alone(folder, insist, note) as alone:
        for _ in range(TRIES if alone else 0):
            with Index(folder) as index:
                built = index.approximate.built if index.approximate else None
                choice = due(index.state, built, anyway=insist and index.approximate is not None and _is_bad(index))
                if choice is None:
                    return
                try:
                    trained = _trained(choice.factory, index) if choice.factory else None
                except VlmkitError:
                    if insist:
                        raise
                    return
                generation = index.state.generation
            if _commit(folder, generation, choice, trained):
                return


def _trained(factory: str, index: Index) -> Trained:
    part = index.folder / "ann.part"
    try:
        return interruptible(lambda: train(factory, index, part))
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def due(state: State, built: Built | None, *, anyway: bool = False) -> Choice | None:
    """What to build, or to go back to, if the approximate index is not what it should be."""
    choice = choose(state.type, state.count, state.dim)
    if choice.factory is None or not state.count:
        return choice._replace(factory=None) if built else None
    fits = built and built.type == choice.type and not anyway
    if built and fits and state.slots - built.covered <= max(TAIL_SLOTS, built.covered // TAIL_SHARE):
        return None
    return choice


def _is_bad(index: Index) -> bool:
    assert index.approximate
    try:
        index.approximate.check(thorough=True)
    except VlmkitError:
        return True
    return False


def _commit(folder: Path, generation: int, choice: Choice, trained: Trained | None) -> bool:
    """Name the new file in the state; False if the vectors were rewritten meanwhile."""
    with Writer(folder) as writer:
        with writer.transaction() as (db, state):
            if state.generation != generation:
                return False
            if trained is None:
                write_built(db, None)
            else:
                path = built_path(folder, state.built + 1)
                os.replace(trained.file, path)
                sync_folder(folder)
                write_state(db, replace(state, built=state.built + 1))
                write_built(db, _described(path, state.built + 1, choice, trained))
        writer.sweep()
    return True


def _described(path: Path, number: int, choice: Choice, trained: Trained) -> Built:
    found = path.stat()
    return Built(
        number=number,
        type=choice.type,
        factory=str(choice.factory),
        covered=trained.covered,
        effort=trained.effort,
        recall=trained.recall,
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        checksum=trained.checksum,
    )


@contextlib.contextmanager
def _alone(folder: Path, wait: bool, note: Callable[[str], None]) -> Iterator[bool]:
    """Whether this process is the one that builds; the lock goes with the process."""
    number = os.open(folder, os.O_RDONLY)
    slow = Timer(NOTED_SECONDS, note, ["another process builds this index: waiting for it"])
    try:
        if wait:
            slow.start()
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        slow.cancel()
        yield True
    except BlockingIOError:
        yield False
    finally:
        slow.cancel()
        os.close(number)


ROWS = 10_000
NORM_TOLERANCE = 5e-3  # float16 rounds each of the D numbers


def verify(index: "Index", db: sqlite3.Connection) -> None:
    """Raise VlmkitError with the first invariant that does not hold."""
    (answer,) = db.execute("PRAGMA integrity_check").fetchone()
    if answer != "ok":
        raise damaged(index.folder, answer)
    _verify_slots(index, db)
    _verify_vectors(index)
    _verify_records(index)
    if index.approximate:
        index.approximate.check(thorough=True)
        index.approximate.opened(index.state.dim)


def _verify_slots(index: "Index", db: sqlite3.Connection) -> None:
    import numpy as np

    slots = np.fromiter((slot for (slot,) in db.execute("SELECT slot FROM records ORDER BY slot")), np.int64)
    live = np.flatnonzero(read_live(db, index.state))
    if len(slots) != len(index) or not np.array_equal(slots, live):
        raise damaged(index.folder, "the slots do not add up")


def _verify_vectors(index: "Index") -> None:
    import numpy as np

    live = index.live()
    for start in range(0, len(live), ROWS):
        slots = live[start : start + ROWS]
        norms = np.linalg.norm(index.vectors[slots].astype(np.float32), axis=1)
        wrong = slots[~(np.abs(norms - 1) < NORM_TOLERANCE)]
        if len(wrong):
            raise damaged(index.folder, f"the vector in slot {wrong[0]} is no unit vector")


def _verify_records(index: "Index") -> None:
    from vlmkit.io.records import loads

    for slot, key, line in index.lines():
        try:
            record = loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or str(record.get("id")) != key:
            raise damaged(index.folder, f"the record in slot {slot}")
