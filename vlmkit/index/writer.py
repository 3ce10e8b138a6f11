"""Records on their way into an index, each embedding checked and in the form that is stored.

Writer: records into an index, and out of it, a transaction at a time.
"""

import base64
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vlmkit.errors import Stopped, VlmkitError
from vlmkit.index.reader import Index, map_vectors
from vlmkit.index.store import (
    SCHEMA,
    State,
    built_path,
    connect,
    damaged,
    patiently,
    read_built,
    read_live,
    read_state,
    silent,
    sync_folder,
    told,
    vectors_path,
    write_built,
    write_live,
    write_state,
)
from vlmkit.index.types import check_type
from vlmkit.io.records import ROUNDING, Failed, Record, batched, decode_embedding, dumps, fingerprint_of

if TYPE_CHECKING:
    import numpy as np


def decoded(results: Iterable[Record | Failed]) -> Iterator[Record | Failed]:
    """Each record with its `embedding` as a unit vector (D float16); one without id or embedding fails."""
    for record in results:
        if isinstance(record, Failed):
            yield record
        elif record.get("id") is None:
            yield Failed.of(record, "no id")
        else:
            try:
                record["embedding"] = _stored(record.get("embedding"))
                yield record
            except ValueError as error:
                yield Failed.of(record, f"{error}; vlmkit embed makes one" if "embedding" not in record else error)


def _stored(value: Any) -> "np.ndarray":
    """D float16. What is a unit vector but for rounding stays as it is, so that a copy of an index is exact."""
    import numpy as np

    if isinstance(value, np.ndarray):  # of a safetensors blob, which was checked when it was read
        return value
    if isinstance(value, str):
        try:
            value = np.frombuffer(base64.b64decode(value, validate=True), "<f2")
        except ValueError:
            raise ValueError("embedding is not base64 of float16 numbers") from None
        wide = value.astype(np.float32)
        if abs(wide.dot(wide) - 1) < ROUNDING:
            return value
    return decode_embedding(value).astype("<f2")


COMMIT_RECORDS = 10_000
COMMIT_SECONDS = 10.0
STATEMENT_RECORDS = 5000  # one statement writes so many, and meanwhile Python reads the next ones
STRAYS = ("vectors-*.f16", "ann-*.faiss")


# Records as they are stored: by id the JSON line without the embedding, and the vector's little-endian float16.
Rows = dict[str, tuple[bytes, bytes]]


class Writer:
    """Upserts records by id. A commit is made every 10,000 records or 10 seconds, and of all that came on leaving.

    That holds for leaving by an exception too: what was read before a signal or an error is kept. `wanted` is the
    type to give the index, None to keep the one it has; `note` hears of waiting for another writer.
    """

    def __init__(self, folder: Path, wanted: str | None = None, note: Callable[[str], None] = silent) -> None:
        self.folder = folder
        self.wanted = wanted
        self._note = note
        self.added = 0
        self._waiting: Rows = {}
        self._handed: Rows = {}  # to the thread
        self._written = self._handed  # the last ones that were committed
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._since = time.monotonic()
        self._failed = False
        self._db: sqlite3.Connection | None = None
        if os.path.lexists(folder) and not folder.is_dir():
            raise VlmkitError(f"{folder} is a file, not an index", "name another folder with -i")
        # In this order: another writer may make the index meanwhile.
        if folder.exists() and any(folder.iterdir()) and not (folder / "index.sqlite").exists():
            raise VlmkitError(f"{folder} is no index and not empty", "name another folder with -i")
        self.state: State | None = None
        with told(folder):
            if (folder / "index.sqlite").exists():
                self.state = read_state(self._connection())
        if self.state and wanted is not None:
            check_type(wanted, self.state.dim)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if not self._failed:
                self.commit()
        finally:
            self._thread.shutdown()
            if self._db:
                with told(self.folder):
                    self._db.close()

    def add(self, record: Record) -> None:
        """Take a record whose `embedding` is a unit vector (D).

        Raises VlmkitError if it does not fit the index.
        """
        vector: np.ndarray = record.pop("embedding")
        self.expect(record.get("model"), len(vector))
        self._take(str(record["id"]), dumps(record), vector.astype("<f2", copy=False).tobytes())

    def merge(self, other: Index) -> None:
        """Take every record of another index of the same model, vectors as they are; the ids of `other` win."""
        self.expect(other.state.model, other.state.dim)
        for slot, key, line in other.lines():
            self._take(key, line, other.vectors[slot].tobytes())

    def expect(self, model: str | None, dim: int) -> None:
        """Raise VlmkitError unless vectors of that model and dimension fit the index, a new one included."""
        if self.state is None:
            check_type(self.wanted or "auto", dim)
            self.state = State(model, dim)
        if model != self.state.model or dim != self.state.dim:
            self._check_fits(self.state, model, dim)

    def _take(self, key: str, line: bytes, vector: bytes) -> None:
        self._waiting[key] = line, vector
        self.added += 1
        if len(self._waiting) >= COMMIT_RECORDS or time.monotonic() - self._since > COMMIT_SECONDS:
            self._hand_over()

    def _check_fits(self, state: State, model: str | None, dim: int) -> None:
        if fingerprint_of(model or "") != fingerprint_of(state.model or ""):
            what = f"the index at {self.folder} holds vectors of {state.model}, not of {model or 'an unnamed model'}"
            raise VlmkitError(what, "name a new index with -i, or remove that folder and index the pictures again")
        if dim != state.dim:
            raise VlmkitError(f"a vector has {dim} numbers, the index {state.dim}", "embed with the model of the index")

    def commit(self) -> None:
        """Write all that was added."""
        try:
            self._hand_over()
            self._finish()
        except Stopped:  # from now on signals are ignored
            self.commit()
            raise

    def _hand_over(self) -> None:
        """Have what waits written, as one transaction, by a thread beside the reading of what comes next."""
        self._finish()
        self._since = time.monotonic()
        # A signal may end this at any point: until `_handed` is written it counts as waiting.
        self._handed, self._waiting = self._waiting, {}
        if self._handed:
            self._writing = self._thread.submit(self._write, self._handed)

    def _finish(self) -> None:
        """Wait until the thread is idle and nothing is handed over that it has not written."""
        self._thread.submit(int).result()
        try:
            if self._writing:
                self._writing.result()
        except Exception:
            self._failed = True  # leaving must not try again
            raise
        if self._handed is not self._written:
            self._waiting = self._handed | self._waiting
            self._handed = self._written

    def _write(self, rows: Rows) -> None:
        with self.transaction() as (db, state):
            after = self._upserted(db, state, rows)
            write_state(db, after)
        self._written = rows
        if after.generation != state.generation:
            self.sweep()

    def remove(self, rows: Sequence[tuple[str, bytes | None]]) -> list[str]:
        """Drop records by id, in one transaction, and return the ids that went.

        One that comes with a line goes only if its record still is that.
        """
        self.commit()
        with self.transaction() as (db, state):
            gone: dict[int, str] = {}
            for key, line in rows:
                clause = "id = ?1 AND (?2 IS NULL OR record = ?2)"
                gone |= db.execute(f"DELETE FROM records WHERE {clause} RETURNING slot, id", (key, line)).fetchall()
            live = read_live(db, state)
            live[list(gone)] = False
            write_state(db, self._settled(db, replace(state, count=state.count - len(gone)), live))
        self.sweep()
        return list(gone.values())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[tuple[sqlite3.Connection, State]]:
        """One commit: the database and the state in it; all or nothing happens."""
        with told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            db = self._connection()
            patiently(db, "BEGIN IMMEDIATE", self._note)
            try:
                yield db, self._begin(db)
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back by itself
                    db.execute("ROLLBACK")
                raise

    def _begin(self, db: sqlite3.Connection) -> State:
        import numpy as np

        state = read_state(db)
        if state is None:
            if self.state is None:
                raise VlmkitError(f"the index at {self.folder} is empty", "pipe records into vlmkit index first")
            state = State(self.state.model, self.state.dim)
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            write_live(db, np.zeros(0, bool))
        if self.state:  # another writer may have been first
            self._check_fits(state, self.state.model, self.state.dim)
        self._delete_strays(db, state)
        path = vectors_path(self.folder, state.generation)
        if state.slots and (not path.exists() or path.stat().st_size < 2 * state.slots * state.dim):
            raise damaged(self.folder, f"{path.name} is too short")
        return replace(state, type=self.wanted or state.type)

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = connect(self.folder)
        return self._db

    def sweep(self) -> None:
        """Delete the files that the committed state does not name. Only under the lock is such a file nobody's."""
        with self.transaction():
            pass

    def _delete_strays(self, db: sqlite3.Connection, state: State) -> None:
        built = read_built(db, state)
        named = {vectors_path(self.folder, state.generation), built and built_path(self.folder, built.number)}
        for stray in {path for pattern in STRAYS for path in self.folder.glob(pattern)} - named:
            stray.unlink(missing_ok=True)

    def _upserted(self, db: sqlite3.Connection, state: State, rows: Rows) -> State:
        """The state after `rows` were written behind the last slot, in place of those with the same ids."""
        import numpy as np

        live = np.concatenate([read_live(db, state), np.ones(len(rows), bool)])
        lines, vectors = zip(*rows.values(), strict=True)
        append(vectors_path(self.folder, state.generation), 2 * state.dim * state.slots, b"".join(vectors))
        if state.count:
            for keys in batched(rows, STATEMENT_RECORDS):
                marks = ",".join("?" * len(keys))
                replaced = db.execute(f"DELETE FROM records WHERE id IN ({marks}) RETURNING slot", keys)
                live[[slot for (slot,) in replaced]] = False
        for some in batched(zip(count(state.slots), rows, lines, strict=False), STATEMENT_RECORDS):
            marks = ",".join(["(?,?,?)"] * len(some))
            db.execute(f"INSERT INTO records VALUES {marks}", list(chain.from_iterable(some)))
        return self._settled(db, replace(state, slots=len(live), count=int(live.sum())), live)

    def _settled(self, db: sqlite3.Connection, state: State, live: "np.ndarray") -> State:
        """The state after the live slots were written down, and the vectors rewritten if most slots are dead."""
        if 2 * (state.slots - state.count) > state.slots:
            state, live = self._compacted(db, state, live)
        write_live(db, live)
        return state

    def _compacted(self, db: sqlite3.Connection, state: State, live: "np.ndarray") -> "tuple[State, np.ndarray]":
        """Rewrite the vectors without the dead slots, as the next generation; the approximate index goes with them."""
        import numpy as np

        old, slots = map_vectors(self.folder, state), np.flatnonzero(live)
        new = vectors_path(self.folder, state.generation + 1)
        append(new, 0, b"")
        for start in range(0, len(slots), COMMIT_RECORDS):
            append(new, 2 * state.dim * start, old[slots[start : start + COMMIT_RECORDS]].tobytes())
        # In ascending order each slot moves down to one that is free already.
        db.executemany("UPDATE records SET slot = ? WHERE slot = ?", enumerate(slots.tolist()))
        write_built(db, None)
        return replace(state, slots=len(slots), generation=state.generation + 1), np.ones(len(slots), bool)


def append(path: Path, offset: int, data: bytes) -> None:
    """Write `data` at `offset`, drop what was behind it, and make it last."""
    new = not path.exists()
    with path.open("wb" if new else "r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)
