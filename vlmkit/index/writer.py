"""Writer: records into an index, and out of it, a transaction at a time."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmkit.errors import Stopped, VlmkitError
from vlmkit.index import store
from vlmkit.index.reader import Index
from vlmkit.index.types import check_type
from vlmkit.io.blobs import Block
from vlmkit.io.records import Failed, Record, batched, dumps, fingerprint_of, to_float16

if TYPE_CHECKING:
    from concurrent.futures import Future

COMMIT_RECORDS = 10_000
COMMIT_SECONDS = 10.0
STATEMENT_RECORDS = 5000  # one statement writes so many, and meanwhile Python reads the next ones
ADDED = (b'"ocr":', b'"caption":', b'"answer":')  # fields that other commands add to records
DERIVED_FILES = ("vectors-*.f16", "ann-*.faiss")

# Records as they are stored: by id the JSON line without the embedding, and the vector (D little-endian float16).
Rows = dict[str, tuple[bytes, np.ndarray]]


class Writer:
    """Upserts records by id. A commit is made every 10,000 records or 10 seconds, and of all that came on leaving.

    That holds for leaving by an exception too: what was read before a signal or an error is kept. `wanted` is the
    type to give the index, None to keep the one it has; `on_wait` hears of waiting for another writer.
    """

    def __init__(self, folder: Path, wanted: str | None = None, on_wait: Callable[[str], None] = store.silent) -> None:
        from concurrent.futures import ThreadPoolExecutor  # not before: who only searches needs none

        self.folder = folder
        self.wanted = wanted
        self.added = 0
        self.lost = 0  # records in place of which others without such fields were written
        self.replaced: list[str] = []  # ids under which another picture, or text, stood before
        self.state: store.State | None = None
        self._on_wait = on_wait
        self._waiting: Rows = {}
        self._handed: Rows = {}  # to the thread
        self._written = self._handed  # the last ones that were committed
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._since = time.monotonic()
        self._failed = False
        self._db: sqlite3.Connection | None = None
        if os.path.lexists(folder) and not folder.is_dir():
            if not os.path.exists(folder):
                raise VlmkitError(f"{folder} is a link that leads nowhere", "mount or make the place that it leads to")
            raise VlmkitError(f"{folder} is a file, not an index", "name another folder with -i")
        # In this order: another writer may make the index meanwhile.
        if folder.exists() and any(folder.iterdir()) and not store.exists(folder):
            raise VlmkitError(f"{folder} is neither an index nor empty", "name another folder with -i")
        with store.index_errors(folder):
            if store.exists(folder):
                self.state = store.read_state(self._connection())
        if self.state and wanted is not None:
            check_type(wanted, self.state.dim)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._failed:
                self.commit()
        finally:
            self._thread.shutdown()
            if self._db:
                with store.index_errors(self.folder):
                    self._db.close()

    def add(self, record: Record) -> None:
        """Take a record whose `embedding` is a unit vector (D), which must not change until it is written.

        Raises VlmkitError if it does not fit the index.
        """
        vector: np.ndarray = record.pop("embedding")
        state = self.state
        if state is None or len(vector) != state.dim or record.get("model") != state.model:
            self._expect(record.get("model"), len(vector))
        self._take(str(record["id"]), dumps(record), vector)

    def add_all(
        self, parts: Iterable[Record | Failed | Block], prepare: Callable[[Record], Record] = lambda record: record
    ) -> Iterator[Record | Failed]:
        """Take all records whose `embedding` can be used here, and yield each that was taken or its failure, in order.

        `prepare` gets those that are not in a block before they are taken. Raises VlmkitError at one that does not fit.
        """
        for part in decode_records(parts):
            if isinstance(part, Block) and self._take_block(part):
                yield from part.records
                continue
            for record in map(self.check_length, part if isinstance(part, Block) else (part,)):
                if not isinstance(record, Failed):
                    self.add(prepare(record))
                yield record

    def _take_block(self, block: Block) -> bool:
        """Take the records of `block` together, unless these have to be looked at one by one."""
        state, waiting = self.state, self._waiting
        models = {record.get("model") for record in block.records}
        keys = [record["id"] for record in block.records]
        if state is None or models != {state.model} or block.vectors.shape[1] != state.dim:
            return False
        if len(set(keys)) < len(keys) or not waiting.keys().isdisjoint(keys):
            return False
        if len(waiting) + len(keys) > COMMIT_RECORDS:
            self._hand_over()
        # In one step: a signal finds all of them or none.
        self._waiting.update(zip(keys, zip(block.lines, block.vectors, strict=True), strict=True))
        self._count(len(keys))
        return True

    def check_length(self, record: Record | Failed) -> Record | Failed:
        """`record`, whose `embedding` is a vector; its failure where vectors of its model have another length here."""
        if isinstance(record, Failed):
            return record
        length = len(record["embedding"])
        if self.state is None or length == self.state.dim or not self._is_of(self.state, record.get("model")):
            return record
        what = f"the embedding has {length} numbers, those of the index {self.state.dim}"
        return Failed.of(record, what, "embed it with the model of the index")

    def merge(self, others: Sequence[Index]) -> None:
        """Take every record of other indexes of the same model, vectors as they are; later ids win.

        Raises VlmkitError, before anything is taken, unless all of them fit.
        """
        for other in others:
            if self.folder.exists() and other.folder.samefile(self.folder):
                raise VlmkitError(f"{other.folder} is the index itself", "name another index to merge")
            self._expect(other.state.model, other.state.dim)
        for other in others:
            for slot, key, line in other.lines():
                self._take(key, line, other.vectors[slot])

    def _expect(self, model: str | None, dim: int) -> None:
        """Raise VlmkitError unless vectors of that model and dimension fit the index, a new one included."""
        if self.state is None:
            check_type(self.wanted or "auto", dim)
            self.state = store.State(model, dim)
        if model != self.state.model or dim != self.state.dim:
            self._check_fits(self.state, model, dim)

    def _check_fits(self, state: store.State, model: str | None, dim: int) -> None:
        if not self._is_of(state, model):
            what = f"the index at {self.folder} holds vectors of {state.model}, not of {model or 'an unnamed model'}"
            raise VlmkitError(what, "name a new index with -i, or remove that folder and index the pictures again")
        if dim != state.dim:
            raise VlmkitError(f"a vector has {dim} numbers, the index {state.dim}", "embed with the model of the index")

    def _is_of(self, state: store.State, model: str | None) -> bool:
        return fingerprint_of(model or "") == fingerprint_of(state.model or "")

    def _take(self, key: str, line: bytes, vector: np.ndarray) -> None:
        waiting = self._waiting
        if key in waiting:
            self._note_replaced(key, waiting[key][0], line)
        waiting[key] = line, vector
        self._count(1)

    def _count(self, taken: int) -> None:
        self.added += taken
        if len(self._waiting) >= COMMIT_RECORDS or time.monotonic() - self._since > COMMIT_SECONDS:
            self._hand_over()

    def _note_replaced(self, key: str, before: bytes, after: bytes) -> None:
        if before != after and _subject(before) != _subject(after):
            self.replaced.append(key)
        self.lost += any(field in before and field not in after for field in ADDED)

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
        except Exception:  # whatever stopped the write: leaving must not try again
            self._failed = True
            raise
        if self._handed is not self._written:
            self._waiting = self._handed | self._waiting
            self._handed = self._written

    def _write(self, rows: Rows) -> None:
        with self.transaction() as (db, state):
            after = self._upsert(db, state, rows)
            store.write_state(db, after)
        self._written = rows
        if after.generation != state.generation:
            self.delete_orphans()

    def remove(self, rows: Sequence[tuple[str, bytes | None]]) -> list[str]:
        """Drop records by id, in one transaction, and return the ids that were there.

        One that comes with a line goes only if its record still is that.
        """
        self.commit()
        with self.transaction() as (db, state):
            gone: dict[int, str] = {}
            for key, line in rows:
                clause = "id = ?1 AND (?2 IS NULL OR record = ?2)"
                gone |= db.execute(f"DELETE FROM records WHERE {clause} RETURNING slot, id", (key, line)).fetchall()
            live = store.read_live(db, state)
            live[list(gone)] = False
            store.write_state(db, self._settle(db, replace(state, count=state.count - len(gone)), live))
        self.delete_orphans()
        return list(gone.values())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[tuple[sqlite3.Connection, store.State]]:
        """One commit: the database and the state in it; all or nothing happens."""
        with store.index_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            db = self._connection()
            store.execute_waiting(db, "BEGIN IMMEDIATE", self._on_wait)
            try:
                yield db, self._begin(db)
                db.execute("COMMIT")
            except BaseException:  # a signal too must end the transaction
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back by itself
                    db.execute("ROLLBACK")
                raise

    def _begin(self, db: sqlite3.Connection) -> store.State:
        state = store.read_state(db)
        if state is None:
            if self.state is None:
                raise VlmkitError(f"the index at {self.folder} is empty", "pipe records into vlmkit index first")
            state = store.State(self.state.model, self.state.dim)
            for statement in store.SCHEMA.split(";"):
                db.execute(statement)
            store.write_live(db, np.zeros(0, bool))
        if self.state:  # another writer may have been first
            self._check_fits(state, self.state.model, self.state.dim)
        self._delete_orphans(db, state)
        path = store.vectors_path(self.folder, state.generation)
        if state.slots and (not path.exists() or path.stat().st_size < 2 * state.slots * state.dim):
            raise store.damaged(self.folder, f"{path.name} is too short")
        return replace(state, type=self.wanted or state.type)

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = store.connect(self.folder)
        return self._db

    def delete_orphans(self) -> None:
        """Delete the files that the committed state does not name; only under the lock does nobody need them."""
        with self.transaction():
            pass  # each begins with that

    def _delete_orphans(self, db: sqlite3.Connection, state: store.State) -> None:
        ann = store.read_ann(db, state)
        named = {store.vectors_path(self.folder, state.generation), ann and store.ann_path(self.folder, ann.number)}
        for orphan in {path for pattern in DERIVED_FILES for path in self.folder.glob(pattern)} - named:
            orphan.unlink(missing_ok=True)

    def _upsert(self, db: sqlite3.Connection, state: store.State, rows: Rows) -> store.State:
        """The state after `rows` were written behind the last slot, in place of those with the same ids."""
        live = np.concatenate([store.read_live(db, state), np.ones(len(rows), bool)])
        lines, vectors = zip(*rows.values(), strict=True)
        data = np.concatenate(vectors).astype("<f2", copy=False).data
        _append(store.vectors_path(self.folder, state.generation), 2 * state.dim * state.slots, data)
        if state.count:
            for keys in batched(rows, STATEMENT_RECORDS):
                values = ",".join("?" * len(keys))
                deleted = f"DELETE FROM records WHERE id IN ({values}) RETURNING slot, id, record"
                for slot, key, line in db.execute(deleted, keys):
                    live[slot] = False
                    self._note_replaced(key, line, rows[key][0])
        blobs = map(bytearray, lines)  # for each `bytes` sqlite3 would look for an adapter
        for some in batched(zip(count(state.slots), rows, blobs, strict=False), STATEMENT_RECORDS):
            values = ",".join(["(?,?,?)"] * len(some))
            db.execute(f"INSERT INTO records VALUES {values}", list(chain.from_iterable(some)))
        return self._settle(db, replace(state, slots=len(live), count=int(live.sum())), live)

    def _settle(self, db: sqlite3.Connection, state: store.State, live: np.ndarray) -> store.State:
        """The state after the live slots were written down, and the vectors rewritten if most slots are dead."""
        if 2 * (state.slots - state.count) > state.slots:
            state, live = self._compact(db, state, live)
        store.write_live(db, live)
        return state

    def _compact(self, db: sqlite3.Connection, state: store.State, live: np.ndarray) -> tuple[store.State, np.ndarray]:
        """Rewrite the vectors without the dead slots, as the next generation; the approximate index goes with them."""
        old, slots = store.map_vectors(self.folder, state), np.flatnonzero(live)
        new = store.vectors_path(self.folder, state.generation + 1)
        _append(new, 0, b"")
        for start in range(0, len(slots), COMMIT_RECORDS):
            _append(new, 2 * state.dim * start, old[slots[start : start + COMMIT_RECORDS]].tobytes())
        # In ascending order each slot moves down to one that is free already.
        db.executemany("UPDATE records SET slot = ? WHERE slot = ?", enumerate(slots.tolist()))
        store.write_ann(db, None)
        return replace(state, slots=len(slots), generation=state.generation + 1), np.ones(len(slots), bool)


def _append(path: Path, offset: int, data: bytes | memoryview) -> None:
    """Write `data` at `offset`, drop what was behind it, and sync it to the disk."""
    is_new = not path.exists()
    with path.open("wb" if is_new else "r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        store.sync_folder(path.parent)


def _subject(line: bytes) -> tuple[object, object]:
    """What a stored record is about: its picture, else its text."""
    record = store.parse_record(line, -1)
    return record.get("image"), None if record.get("image") else record.get("text")


def decode_records(results: Iterable[Record | Failed | Block]) -> Iterator[Record | Failed | Block]:
    """Each record with its `embedding` as a unit vector (D float16); one without id or embedding fails."""
    for record in results:
        if isinstance(record, Failed | Block):
            yield record
        elif record.get("id") is None:
            yield Failed.of(record, "no id")
        elif isinstance(
            record.get("embedding"), np.ndarray
        ):  # of a safetensors blob, which was checked when it was read
            yield record
        else:
            try:
                record["embedding"] = to_float16(record.get("embedding"))
                yield record
            except ValueError as error:
                yield Failed.of(record, f"{error}; vlmkit embed makes one" if "embedding" not in record else error)
