"""Build the approximate index when its type, or the records that came since, say that it is due.

It is built beside the index, without a lock that would keep writers waiting: vectors of a generation never change. One
process builds at a time. Committed it is like records: the file is renamed and named in one SQLite transaction.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from vlmkit.errors import VlmkitError, interruptible
from vlmkit.index import store
from vlmkit.index.ann import RESERVE
from vlmkit.index.reader import Index
from vlmkit.index.types import Choice, choose, flat, load_type
from vlmkit.index.types.faiss_index import FaissIndex
from vlmkit.index.writer import Writer
from vlmkit.io.files import lock

TAIL_SLOTS = 10_000  # after the covered ones: searched exactly in a millisecond
TAIL_SHARE = 4  # and a quarter of those that are covered
QUERIES = 200
RECALL = 0.98  # measured on a sample: 0.95 holds for queries like it
GAIN = 0.002  # of recall, for which twice the effort is worth while
SEED = 0


def set_type(folder: Path, wanted: str, on_wait: Callable[[str], None] = store.silent) -> None:
    """Set the type of the index; `maintain` builds it."""
    with Writer(folder, wanted, on_wait) as writer, writer.transaction() as (db, state):
        store.write_state(db, state)


def change_type(folder: Path, wanted: str, before: str, on_wait: Callable[[str], None] = store.silent) -> None:
    """Set the type of the index and build it; if that fails, restore the type `before`."""
    set_type(folder, wanted, on_wait)
    try:
        maintain(folder, insist=True, on_wait=on_wait)
    except BaseException:  # a signal too must leave the type as it was
        set_type(folder, before)
        raise


def maintain(folder: Path, *, insist: bool = False, on_wait: Callable[[str], None] = store.silent) -> None:
    """Build the approximate index, or drop it, if that is due.

    If it cannot be built, or another process is building, searches stay exact. With `insist` VlmkitError is raised
    instead, and the other process is waited for, after a call of `on_wait`.
    """

    def waiting() -> None:
        on_wait("another process builds this index: waiting for it")

    with store.index_errors(folder), lock(folder, wait=insist, on_wait=waiting) as locked:
        if not locked:
            return
        file = folder / "ann.part"
        try:
            while not _build_if_due(folder, file, insist=insist):
                pass  # vectors were rewritten meanwhile
        finally:
            file.unlink(missing_ok=True)


def _build_if_due(folder: Path, file: Path, *, insist: bool) -> bool:
    """Build or drop the approximate index if that is due. False if vectors changed meanwhile: call it again."""
    with Index(folder) as index:
        choice, generation = _due(index, check_file=insist), index.state.generation
        if choice is None:
            return True
        try:
            info = interruptible(partial(_build, choice, index, file)) if choice.factory else None
        except VlmkitError:
            if insist:
                raise
            return True
    return _commit(folder, generation, file, info)


def _due(index: Index, *, check_file: bool) -> Choice | None:
    """The type to build, or to go back to, where the approximate index does not fit type and size; else None."""
    state, ann = index.state, index.ann
    choice = choose(state.type, state.count, state.dim)
    if choice.factory is None or not state.count:
        return choice._replace(factory=None) if ann else None
    if ann is None or ann.info.type != choice.type:
        return choice
    if check_file:
        try:
            ann.check(thorough=True)
        except VlmkitError:
            return choice
    tail = state.slots - ann.info.covered
    return choice if tail > max(TAIL_SLOTS, ann.info.covered // TAIL_SHARE) else None


def _build(choice: Choice, index: Index, file: Path) -> store.AnnInfo:
    """Build the index over all slots, into `file`; its number is not known yet. Raises VlmkitError."""
    factory, vectors = str(choice.factory), index.vectors
    try:
        ann = load_type(choice.type).build(factory, vectors)
        search_effort, recall = _measure(ann, vectors)
    except (RuntimeError, MemoryError) as error:
        reason = re.sub(r".* at \S+: ", "", " ".join(str(error).split())) or "not enough memory"
        what = f"{factory} cannot be built over {len(vectors)} vectors ({reason})"
        raise VlmkitError(what, "choose another --type; until then searches are exact") from None
    try:
        ann.write(file)
    except RuntimeError as error:
        what = f"cannot write {file} ({str(error).rpartition(':')[2].strip()})"
        raise VlmkitError(what, "free some space; until then searches are exact") from None
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
        checksum, found = hashlib.file_digest(stream, "sha256").hexdigest(), os.fstat(stream.fileno())
    size, time = found.st_size, found.st_mtime_ns
    return store.AnnInfo(0, choice.type, factory, len(vectors), search_effort, recall, size, time, checksum)


def _measure(ann: FaissIndex, vectors: np.ndarray) -> tuple[int, float]:
    """The least search effort that finds enough of the true ten nearest, or all that more would, and the share found.

    Half of the queries are stored vectors with noise, half lie between two stored vectors, as texts do: far from all.
    """
    rng = np.random.default_rng(SEED)
    one, other = (vectors[rng.integers(len(vectors), size=QUERIES)].astype(np.float32) for _ in range(2))
    noise = rng.standard_normal(one.shape).astype(np.float32) / (2 * one.shape[1] ** 0.5)
    queries = np.where(np.arange(QUERIES)[:, None] % 2, one + noise, one + other)
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-6)

    k = min(10, len(vectors))
    _, truth = flat.search(vectors, queries, k)
    count = min(len(vectors), k if ann.is_lossless else RESERVE * k)
    enough, best = 0, -GAIN
    for search_effort in ann.search_efforts:
        ann.set_search_effort(search_effort)
        _, found = ann.search(queries, count)
        recall = float(np.mean([np.isin(row, near).mean() for row, near in zip(truth, found, strict=True)]))
        if recall < best + GAIN:  # what is lost is lost to the codes
            break
        enough, best = search_effort, recall
        if recall >= RECALL:
            break
    ann.set_search_effort(enough)
    return enough, best


def _commit(folder: Path, generation: int, file: Path, info: store.AnnInfo | None) -> bool:
    """Enter the new file in the database; False if the vectors were rewritten meanwhile."""
    with Writer(folder) as writer:
        with writer.transaction() as (db, state):
            if state.generation != generation:
                return False
            if info is not None:
                info = replace(info, number=state.built + 1)
                os.replace(file, store.ann_path(folder, info.number))
                store.sync_folder(folder)
                store.write_state(db, replace(state, built=info.number))
            store.write_ann(db, info)
        writer.delete_orphans()
    return True
