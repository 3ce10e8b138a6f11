"""The folder of an index: its files, its database, and its errors, each in one line."""

import contextlib
import difflib
import os
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.index.vector_stores import is_elsewhere
from vlmkit.io.files import user_folder
from vlmkit.io.records import Record, loads

LOCK_SECONDS = 60.0
NOTED_SECONDS = 1.0  # of waiting
BUSY_MILLISECONDS = 200  # that SQLite itself waits, and keeps signals waiting
PAUSE_SECONDS = 0.01
CACHE_KIB = 65_536  # ids come in any order, so the pages of their index are touched everywhere
MAPPED = 1 << 30  # bytes of the database that readers map: a record is found in half the time
FORMAT = 2
APPLICATION = 0x766C6D6B  # "vlmk": marks a database as vlmkit's
INDEX_AGAIN = "remove the folder and index the pictures again"

SCHEMA = f"""
CREATE TABLE state (model TEXT, dim INTEGER NOT NULL, slots INTEGER NOT NULL, count INTEGER NOT NULL,
                    generation INTEGER NOT NULL, built INTEGER NOT NULL, type TEXT NOT NULL);
CREATE TABLE live (bitmap BLOB NOT NULL);
CREATE TABLE records (slot INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record BLOB NOT NULL);
CREATE TABLE approximate (number INTEGER NOT NULL, type TEXT NOT NULL, factory TEXT NOT NULL, covered INTEGER NOT NULL,
                          effort INTEGER NOT NULL, recall REAL NOT NULL, size INTEGER NOT NULL,
                          mtime_ns INTEGER NOT NULL, checksum TEXT NOT NULL);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
"""


@dataclass(frozen=True, slots=True)
class State:
    """The row of table `state`: what an index holds.

    `model` is the identity, `dim` D, `slots` those written (dead ones too), `count` the live ones, `generation` that of
    the vectors, `built` the number of the newest approximate index, `type` the one that was asked for.
    """

    model: str | None
    dim: int
    slots: int = 0
    count: int = 0
    generation: int = 0
    built: int = 0
    type: str = "auto"


@dataclass(frozen=True, slots=True)
class AnnInfo:
    """The row of table `approximate`: a committed approximate index, of the slots from 0 to `covered`.

    `recall` is the recall@10 measured with `search_effort` (nprobe or efSearch) when it was built. FAISS trusts what it
    reads, so it gets the file only while `size` and `mtime_ns` are those written, or else the SHA-256 is `checksum`.
    """

    number: int
    type: str
    factory: str
    covered: int
    search_effort: int
    recall: float
    size: int
    mtime_ns: int
    checksum: str


Row = TypeVar("Row", State, AnnInfo)


def index_folder(name: str) -> Path:
    """The folder of an index: a path if it has a `/` or a `.`, else a name under `$XDG_DATA_HOME/vlmkit`."""
    if not name.strip() or "\0" in name:
        raise VlmkitError("the index has no name", "give -i (or $VLMKIT_INDEX) a name or a path")
    if is_elsewhere(name):
        what = f"{name} is a vector store, which only vlmkit search reads and vlmkit index --to fills"
        raise VlmkitError(what, f"name an index in a folder; ./{name} is a folder of that name")
    if "/" in name or "." in name:
        return Path(name)
    folder = user_folder("data") / name
    if not folder.exists() and exists(Path(name)):
        raise VlmkitError(f"there is no index named {name}, but the folder {name} is one", f"use -i ./{name}")
    return folder


def without_index(folder: Path) -> str:
    """What to do where there is no index in `folder`."""
    named = folder.parent == (data := user_folder("data"))
    others = [found.parent.name for found in data.glob("*/index.sqlite")] if named else []
    if near := difflib.get_close_matches(folder.name, others, 1):
        return f"did you mean -i {near[0]}?"
    name = folder.name if named else str(folder) if "/" in str(folder) else f"./{folder}"
    flag = "" if folder == data / "default" else f" -i {shlex.quote(name)}"
    return f"make one: vlmkit embed PHOTOS | vlmkit index{flag}"


def exists(folder: Path) -> bool:
    return (folder / "index.sqlite").exists()


def vectors_path(folder: Path, generation: int) -> Path:
    return folder / f"vectors-{generation}.f16"


def ann_path(folder: Path, number: int) -> Path:
    return folder / f"ann-{number}.faiss"


def map_vectors(folder: Path, state: State) -> np.ndarray:
    """All slots, dead ones too, as a read-only map: S x D float16. Raises FileNotFoundError and VlmkitError."""
    path, size = vectors_path(folder, state.generation), 2 * state.slots * state.dim
    if path.stat().st_size < size:
        raise damaged(folder, f"{path.name} is too short")
    if not size:
        return np.empty((0, state.dim), "<f2")
    return np.memmap(path, "<f2", "r", shape=(state.slots, state.dim))


def connect(folder: Path, *, write: bool = True) -> sqlite3.Connection:
    path = (folder / "index.sqlite").absolute()
    if write:
        db = _open(path, "mode=rwc")
        _check_format(db)
        execute_waiting(db, "PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 8000")
        db.execute(f"PRAGMA cache_size = {-CACHE_KIB}")
        return db
    writable = os.access(folder, os.W_OK) and os.access(path, os.W_OK)
    db = _open(path, "mode=rw") if writable else _connect_unwritable(path)
    try:
        db.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        if not writable or error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL):
            raise
        db.close()
        db = _connect_unwritable(path, has_space=False)
    db.execute("PRAGMA query_only = ON")
    db.execute(f"PRAGMA mmap_size = {MAPPED}")
    return db


def _connect_unwritable(path: Path, has_space: bool = True) -> sqlite3.Connection:
    """The database for a reader who may not write beside it, with all that is committed in its log.

    SQLite reads the log by the writer's shared memory. Where that file is missing, or a full disk has no space for it,
    nobody writes here, and the log is read without locks; without a log the database file is all there is.
    """
    log, shared = Path(f"{path}-wal"), Path(f"{path}-shm")
    if has_space and log.exists() and shared.exists():
        return _open(path, "mode=ro")
    if not log.exists() or not log.stat().st_size:
        return _open(path, "mode=ro&immutable=1")
    db = _open(path, "mode=ro&vfs=unix-none")
    db.execute("PRAGMA locking_mode = EXCLUSIVE")  # its index of the log stays in this process
    return db


def _open(path: Path, parameters: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.as_uri()}?{parameters}",
        uri=True,
        timeout=LOCK_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    db.execute("PRAGMA trusted_schema = OFF")
    return db


def silent(_: str) -> None:
    """An `on_wait` that does nothing."""


def execute_waiting(db: sqlite3.Connection, statement: str, on_wait: Callable[[str], None] = silent) -> None:
    """Execute `statement`, waiting while another writer has the lock; after a second `on_wait` is called.

    SQLite's own waiting delays signals, and it fails at once where two writers switch a new index to WAL.
    """
    start, noted = time.monotonic(), False
    db.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
    try:
        while True:
            try:
                db.execute(statement)
                return
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - start
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or waited > LOCK_SECONDS:
                    raise
                if not noted and waited > NOTED_SECONDS:
                    on_wait("another process writes this index: waiting for it")
                    noted = True
                time.sleep(PAUSE_SECONDS)
    finally:
        db.execute(f"PRAGMA busy_timeout = {1000 * LOCK_SECONDS:.0f}")


def _check_format(db: sqlite3.Connection) -> bool:
    """Whether anything was ever committed. Raises VlmkitError for a database of another program or format."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # first: another writer may make them now
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION and tables:
        raise VlmkitError("the index.sqlite there is not an index of this vlmkit", "name another folder with -i")
    if version not in (0, FORMAT):
        remedy = "upgrade vlmkit" if version > FORMAT else INDEX_AGAIN
        raise VlmkitError(f"the index has format {version}, this vlmkit reads {FORMAT}", remedy)
    return bool(version and tables)


def read_state(db: sqlite3.Connection) -> State | None:
    """The state as of this transaction; None where nothing was ever committed."""
    if not _check_format(db):
        return None
    state = _read_row(db, "state", State)
    if state and state.count <= state.slots and 0 < state.dim < 1 << 20:
        return state
    raise _nonsense("state")


def write_state(db: sqlite3.Connection, state: State) -> None:
    _write_row(db, "state", state)


def read_ann(db: sqlite3.Connection, state: State) -> AnnInfo | None:
    """The approximate index as of this transaction, if there is one."""
    info = _read_row(db, "approximate", AnnInfo)
    if info and not (0 < info.covered <= state.slots and info.number <= state.built):
        raise _nonsense("approximate")
    return info


def write_ann(db: sqlite3.Connection, info: AnnInfo | None) -> None:
    _write_row(db, "approximate", info)


def read_live(db: sqlite3.Connection, state: State) -> np.ndarray:
    """Which slots are live: `slots` booleans."""
    row = db.execute("SELECT bitmap FROM live").fetchone()
    if row is None or not isinstance(row[0], bytes) or len(row[0]) != -(-state.slots // 8):
        raise sqlite3.DatabaseError("its bitmap of live slots has the wrong length")
    return np.unpackbits(np.frombuffer(row[0], "u1"), count=state.slots, bitorder="little").astype(bool)


def write_live(db: sqlite3.Connection, live: np.ndarray) -> None:
    db.execute("DELETE FROM live")
    db.execute("INSERT INTO live VALUES (?)", (np.packbits(live, bitorder="little").tobytes(),))


def _read_row(db: sqlite3.Connection, table: str, kind: type[Row]) -> Row | None:
    """The only row of `table`, None where it is empty. Raises DatabaseError where a value has the wrong type."""
    rows = db.execute(f"SELECT * FROM {table}").fetchall()
    types: list[Any] = [field.type for field in fields(kind)]
    for row in rows:
        negative = any(isinstance(value, int) and value < 0 for value in row)
        if len(rows) > 1 or len(row) != len(types) or not all(map(isinstance, row, types)) or negative:
            raise _nonsense(table)
    return kind(*rows[0]) if rows else None


def _write_row(db: sqlite3.Connection, table: str, row: State | AnnInfo | None) -> None:
    db.execute(f"DELETE FROM {table}")
    if row is not None:
        values = astuple(row)
        db.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(values))})", values)


def _nonsense(table: str) -> sqlite3.DatabaseError:
    return sqlite3.DatabaseError(f"table {table} has invalid values")


def sync_folder(folder: Path) -> None:
    """Sync the names of new and replaced files in the folder to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def parse_record(line: Any, slot: int) -> Record:
    """The record in `line`. Raises DatabaseError where it is not a JSON object."""
    try:
        record = loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise sqlite3.DatabaseError(f"the record in slot {slot} is not a JSON object")
    return record


def damaged(folder: Path, what: str, remedy: str = INDEX_AGAIN) -> VlmkitError:
    return VlmkitError(f"the index at {folder} is damaged: {what}", remedy)


@contextlib.contextmanager
def index_errors(folder: Path) -> Iterator[None]:
    """Raise errors of SQLite and of the system as a VlmkitError that names the folder and says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _database_error(folder, error) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise VlmkitError(
            f"the index at {folder}: {reason}", "name another index with -i, or free some space"
        ) from None


def _database_error(folder: Path, error: sqlite3.Error) -> VlmkitError:
    code: Any = getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_CORRUPT
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            what = f"another writer has locked the index at {folder} for {LOCK_SECONDS:.0f} seconds"
            return VlmkitError(what, "try again when it has finished")
        case sqlite3.SQLITE_FULL:
            return VlmkitError(f"no space is left for the index at {folder}", "free some space, and run this again")
        case sqlite3.SQLITE_IOERR:
            return VlmkitError(f"the index at {folder} cannot be read or written ({error})", "check disk and space")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            what = f"the index at {folder} cannot be opened ({error})"
            return VlmkitError(what, "check the permissions of that folder")
        case _:
            return damaged(folder, str(error))
