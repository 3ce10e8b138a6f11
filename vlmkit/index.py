"""index: vectors for FAISS and records in SQLite, committed together.

An index is a folder. `index.sqlite` holds the records, each with its slot, and the state: model, dimension, number of
slots, generation. `vectors-GENERATION.f16` holds the vectors, slot after slot, as little-endian float16; it only grows.
The SQLite transaction is the commit: bytes behind the last committed slot mean nothing and are written over. A
replaced record leaves a dead slot; when these outnumber the live ones the vectors are rewritten as a new generation.
Readers map the vectors and hand them to FAISS as they are, so opening takes the same time at any size.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.models import digits_of
from vlmkit.records import Failed, Record, decode_embedding, dumps, loads

if TYPE_CHECKING:
    import faiss
    import numpy as np

COMMIT_RECORDS = 10_000
COMMIT_SECONDS = 10.0
LOCK_SECONDS = 60.0
NORM_TOLERANCE = 5e-3  # float16 rounds each of the D numbers

SCHEMA = """
CREATE TABLE state (model TEXT, dim INTEGER NOT NULL, slots INTEGER NOT NULL, generation INTEGER NOT NULL);
CREATE TABLE records (slot INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record BLOB NOT NULL);
CREATE TABLE dead (slot INTEGER PRIMARY KEY);
PRAGMA user_version = 1;
"""


@dataclass(frozen=True, slots=True)
class State:
    """What an index holds: the model's identity, D, slots written (dead ones too), the vectors' generation."""

    model: str | None
    dim: int
    slots: int
    generation: int


class Hit(NamedTuple):
    """A record found, with its cosine."""

    score: float
    record: Record


def index_folder(name: str) -> Path:
    """The folder of an index: a path if it has a `/` or a `.`, else a name under `$XDG_DATA_HOME/vlmkit`."""
    if "/" in name or "." in name:
        return Path(name)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "vlmkit" / name


class NoIndex(VlmkitError):
    """There is no index, or nothing was ever saved in it."""


class Index:
    """An index open for reading, as it was at one moment. Raises NoIndex, or VlmkitError where it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "index.sqlite").is_file():
            raise NoIndex(f"no index at {folder}", "make one: vlmkit embed PHOTOS | vlmkit index -i INDEX")
        with _told(folder):
            self._db = _connect(folder, write=False)
            try:
                self.state, self.vectors = self._snapshot()
            except FileNotFoundError:  # a writer went on to the next generation between our two steps
                self._db.execute("COMMIT")
                try:
                    self.state, self.vectors = self._snapshot()
                except FileNotFoundError as error:
                    raise _damaged(folder, f"{Path(error.filename).name} is missing") from None

    def _snapshot(self) -> "tuple[State, np.ndarray]":
        """The state, and all slots as a read-only map, slots x D float16; later reads see the same moment."""
        import numpy as np

        self._db.execute("BEGIN")
        state = _read_state(self._db)
        if state is None:
            raise NoIndex(f"the index at {self.folder} is empty", "pipe records into vlmkit index first")
        path, shape = _vectors_path(self.folder, state.generation), (state.slots, state.dim)
        if path.stat().st_size < 2 * state.slots * state.dim:
            raise _damaged(self.folder, f"{path.name} is too short")
        return state, np.memmap(path, "<f2", "r", shape=shape)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __len__(self) -> int:
        return self._db.execute("SELECT count(*) FROM records").fetchone()[0]

    def info(self) -> dict[str, Any]:
        """`path, model, dim, count, type, bytes`."""
        files = [entry for entry in os.scandir(self.folder) if not entry.name.endswith("-shm")]  # ours, while open
        size = sum(entry.stat().st_size for entry in files)
        return {
            "path": os.path.abspath(self.folder),
            "model": self.state.model,
            "dim": self.state.dim,
            "count": len(self),
            "type": "flat",
            "bytes": size,
        }

    def search(self, queries: "np.ndarray", k: int) -> list[list[Hit]]:
        """The k nearest records of each query (N x D float32, L2-normalised) by cosine, best first; exact."""
        if not len(self):
            return [[] for _ in queries]
        flat, keep = self._faiss()
        scores, slots = flat.search(queries, min(k, self.state.slots), params=keep)
        return [self._hits(row, found) for row, found in zip(scores, slots, strict=True)]

    def _hits(self, scores: "np.ndarray", slots: "np.ndarray") -> list[Hit]:
        found = sorted((-float(s), int(slot)) for s, slot in zip(scores, slots, strict=True) if slot >= 0)
        return [Hit(min(-score, 1.0), self.record(slot)) for score, slot in found]

    def record(self, slot: int) -> Record:
        """The record in a live slot, without its embedding."""
        (line,) = self._db.execute("SELECT record FROM records WHERE slot = ?", (slot,)).fetchone()
        return loads(line)

    def get(self, key: str) -> Record | None:
        """The record with this id, without its embedding; None if there is none."""
        with _told(self.folder):
            found = self._db.execute("SELECT record FROM records WHERE id = ?", (key,)).fetchone()
        return None if found is None else loads(found[0])

    def _faiss(self) -> "tuple[faiss.IndexScalarQuantizer, faiss.SearchParameters | None]":
        """FAISS's exact float16 inner-product index over the mapped vectors, without a copy, and what to leave out."""
        import faiss

        flat = faiss.IndexScalarQuantizer(self.state.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        start = faiss.swig_ptr(self.vectors.view("u1").reshape(-1))
        codes = flat.codes
        codes.is_owned = False
        codes.view_data = codes.c_ptr = start
        codes.view_size = codes.c_size = self.vectors.nbytes
        flat.ntotal = self.state.slots
        flat.referenced_objects = [self.vectors]  # the map must live as long as FAISS reads it
        dead = [slot for (slot,) in self._db.execute("SELECT slot FROM dead")]
        if not dead:
            return flat, None
        batch = faiss.IDSelectorBatch(dead)
        return flat, faiss.SearchParameters(sel=faiss.IDSelectorNot(batch))

    def verify(self) -> None:
        """Check every invariant; raises VlmkitError with the first that does not hold."""
        import numpy as np

        def check(holds: bool, what: str) -> None:
            if not holds:
                raise _damaged(self.folder, what)

        with _told(self.folder):
            (answer,) = self._db.execute("PRAGMA integrity_check").fetchone()
            check(answer == "ok", answer)
            live = [slot for (slot,) in self._db.execute("SELECT slot FROM records ORDER BY slot")]
            dead = [slot for (slot,) in self._db.execute("SELECT slot FROM dead ORDER BY slot")]
            check(sorted(live + dead) == list(range(self.state.slots)), "the slots do not add up")
            for start in range(0, len(live), COMMIT_RECORDS):
                slots = live[start : start + COMMIT_RECORDS]
                norms = np.linalg.norm(self.vectors[slots].astype(np.float32), axis=1)
                wrong = np.flatnonzero(~(np.abs(norms - 1) < NORM_TOLERANCE))
                check(not len(wrong), f"the vector in slot {slots[wrong[0]] if len(wrong) else 0} is no unit vector")
            for slot, key, line in self._db.execute("SELECT slot, id, record FROM records"):
                try:
                    record = loads(line)
                except ValueError:
                    record = None
                check(isinstance(record, dict) and str(record.get("id")) == key, f"the record in slot {slot}")


class Writer:
    """Upserts records by id. A commit is made every 10,000 records or 10 seconds, and of all that came on leaving.

    That holds for leaving by an exception too: what was read before a signal or an error is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.added = 0
        self._waiting: dict[str, tuple[bytes, np.ndarray]] = {}
        self._since = time.monotonic()
        self._failed = False
        if os.path.lexists(folder) and not folder.is_dir():
            raise VlmkitError(f"{folder} is a file, not an index", "name another folder with -i")
        if folder.exists() and not (folder / "index.sqlite").exists() and any(folder.iterdir()):
            raise VlmkitError(f"{folder} is no index and not empty", "name another folder with -i")
        with _told(folder):
            self._state = None
            if (folder / "index.sqlite").exists():
                with contextlib.closing(_connect(folder)) as db:
                    self._state = _read_state(db)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._failed:
            self.commit()

    def add(self, record: Record) -> None:
        """Take a record whose `embedding` is a vector (D float32). Raises VlmkitError if it does not fit the index."""
        vector: np.ndarray = record["embedding"]
        model = record.get("model")
        if self._state is None:
            self._state = State(model, len(vector), 0, 0)
        self._check_fits(self._state, model, len(vector))
        line = dumps({key: value for key, value in record.items() if key != "embedding"})
        self._waiting[str(record["id"])] = (line, vector.astype("<f2"))
        self.added += 1
        if len(self._waiting) >= COMMIT_RECORDS or time.monotonic() - self._since > COMMIT_SECONDS:
            self.commit()

    def _check_fits(self, state: State, model: str | None, dim: int) -> None:
        if digits_of(model or "") != digits_of(state.model or ""):
            what = f"the index at {self.folder} holds vectors of {state.model}, not of {model or 'an unnamed model'}"
            raise VlmkitError(what, "name a new index with -i, or remove that folder and index the pictures again")
        if dim != state.dim:
            raise VlmkitError(f"a vector has {dim} numbers, the index {state.dim}", "embed with the model of the index")

    def commit(self) -> None:
        """Write what waits, as one transaction."""
        self._since = time.monotonic()
        if not self._waiting:
            return
        self._failed = True  # until it is done: leaving must not try again
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(_connect(self.folder)) as db:
                db.execute("BEGIN IMMEDIATE")
                stale = self._write(db)
                db.execute("COMMIT")
            if stale is not None:
                stale.unlink(missing_ok=True)
        self._waiting.clear()
        self._failed = False

    def _write(self, db: sqlite3.Connection) -> Path | None:
        """Upsert what waits; the vectors' file that no later reader needs, if they were rewritten."""
        import numpy as np

        assert self._state is not None
        state = _read_state(db)
        if state is None:
            state = State(self._state.model, self._state.dim, 0, 0)
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO state VALUES (?, ?, 0, 0)", (state.model, state.dim))
        self._check_fits(state, self._state.model, self._state.dim)  # another writer may have been first
        path = _vectors_path(self.folder, state.generation)
        if state.slots and (not path.exists() or path.stat().st_size < 2 * state.slots * state.dim):
            raise _damaged(self.folder, f"{path.name} is too short")
        for key in self._waiting:
            replaced = db.execute("DELETE FROM records WHERE id = ? RETURNING slot", (key,)).fetchall()
            db.executemany("INSERT INTO dead VALUES (?)", replaced)
        lines = [(state.slots + i, key, line) for i, (key, (line, _)) in enumerate(self._waiting.items())]
        vectors = np.stack([vector for _, vector in self._waiting.values()])
        _append(path, 2 * state.dim * state.slots, vectors)
        db.executemany("INSERT INTO records VALUES (?, ?, ?)", lines)
        slots = state.slots + len(lines)
        db.execute("UPDATE state SET slots = ?", (slots,))
        (dead,) = db.execute("SELECT count(*) FROM dead").fetchone()
        if 2 * dead <= slots:
            return None
        self._compact(db, State(state.model, state.dim, slots, state.generation))
        return _vectors_path(self.folder, state.generation)

    def _compact(self, db: sqlite3.Connection, state: State) -> None:
        """Rewrite the vectors without the dead slots, as the next generation."""
        import numpy as np

        old = np.memmap(_vectors_path(self.folder, state.generation), "<f2", "r", shape=(state.slots, state.dim))
        live = [slot for (slot,) in db.execute("SELECT slot FROM records ORDER BY slot")]
        new = _vectors_path(self.folder, state.generation + 1)
        for start in range(0, len(live), COMMIT_RECORDS):
            _append(new, 2 * state.dim * start, old[live[start : start + COMMIT_RECORDS]])
        # In ascending order each slot moves down to one that is free already.
        db.executemany("UPDATE records SET slot = ? WHERE slot = ?", enumerate(live))
        db.execute("DELETE FROM dead")
        db.execute("UPDATE state SET slots = ?, generation = generation + 1", (len(live),))


def decoded(results: Iterable[Record | Failed]) -> Iterator[Record | Failed]:
    """Each record with its `embedding` as a unit vector (D float32); one without id or embedding fails."""
    for record in results:
        if isinstance(record, Failed):
            yield record
        elif record.get("id") is None:
            yield Failed.of(record, "no id")
        else:
            try:
                yield record | {"embedding": decode_embedding(record.get("embedding"))}
            except ValueError as error:
                yield Failed.of(record, f"{error}; vlmkit embed makes one" if "embedding" not in record else error)


def _damaged(folder: Path, what: str) -> VlmkitError:
    return VlmkitError(f"the index at {folder} is damaged: {what}", "remove the folder and index the pictures again")


def _vectors_path(folder: Path, generation: int) -> Path:
    return folder / f"vectors-{generation}.f16"


def _append(path: Path, offset: int, vectors: "np.ndarray") -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(vectors.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _connect(folder: Path, *, write: bool = True) -> sqlite3.Connection:
    path = (folder / "index.sqlite").absolute()
    mode = "rwc" if write else "rw"
    if not write and not (os.access(folder, os.W_OK) and os.access(path, os.W_OK)):
        mode = "ro&immutable=1"  # nobody writes there, and SQLite could not make its shared-memory file
    db = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=LOCK_SECONDS, isolation_level=None)
    if write:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    else:
        db.execute("PRAGMA query_only = ON")
    return db


def _read_state(db: sqlite3.Connection) -> State | None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == 0:
        return None
    if version != 1:
        raise VlmkitError(f"the index has format {version}, this vlmkit reads 1", "upgrade vlmkit")
    return State(*db.execute("SELECT model, dim, slots, generation FROM state").fetchone())


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise VlmkitError(f"the index at {folder} cannot be used ({error})", "make the index again") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise VlmkitError(
            f"the index at {folder}: {reason}", "name another index with -i, or free some space"
        ) from None
