"""upkeep: build the approximate index when its type or the records that came since say that it is due.

It is built beside the index, without a lock that would keep writers waiting: vectors of a generation never change. One
process builds at a time. Committed it is like records: the file is renamed and named in one SQLite transaction.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer

from vlmkit.errors import VlmkitError
from vlmkit.index.build import Trained, train
from vlmkit.index.reader import Index
from vlmkit.index.store import (
    NOTED_SECONDS,
    Built,
    State,
    built_path,
    silent,
    sync_folder,
    told,
    write_built,
    write_state,
)
from vlmkit.index.types import Choice, choose
from vlmkit.index.writer import Writer
from vlmkit.signals import interruptible

TAIL_SLOTS = 10_000  # searched exactly in a millisecond; and a quarter of what is covered
TAIL_SHARE = 4
TRIES = 3


def set_type(folder: Path, wanted: str, note: Callable[[str], None] = silent) -> None:
    """Have the index be of that type from now on; `upkeep` builds it."""
    with Writer(folder, wanted, note) as writer, writer.transaction() as (db, state):
        write_state(db, state)


def change_type(folder: Path, wanted: str, before: str, note: Callable[[str], None] = silent) -> None:
    """Have the index be of that type, and build it; where that cannot be done it keeps the one `before`."""
    set_type(folder, wanted, note)
    try:
        upkeep(folder, insist=True, note=note)
    except BaseException:
        set_type(folder, before)
        raise


def upkeep(folder: Path, *, insist: bool = False, note: Callable[[str], None] = silent) -> None:
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
