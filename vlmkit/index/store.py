"""The folder of an index: its files, its database, and what goes wrong with them, in one line each."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError

if TYPE_CHECKING:
    import numpy as np

LOCK_SECONDS = 60.0
NOTED_SECONDS = 1.0  # of waiting
ASKED_SECONDS = 0.2
PAUSE_SECONDS = 0.01
CACHE_KIB = 65_536  # ids come in any order, so the pages of their index are touched everywhere
MAPPED = 1 << 30  # bytes of the database that readers map: a record is found in half the time
FORMAT = 2
APPLICATION = 0x766C6D6B  # "vlmk": tells our database from others
AGAIN = "remove the folder and index the pictures again"

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
    """What an index holds.

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
class Built:
    """A committed approximate index: FAISS's `factory` string, the slots it covers from 0, and what to expect of it.

    `effort` is its nprobe or efSearch, with which `recall`@10 was measured when it was built. The file is handed to
    FAISS, whose reader trusts what it reads, only while `size` and `mtime_ns` are those of the file that was written,
    or else its SHA-256 is `checksum`.
    """

    number: int
    type: str
    factory: str
    covered: int
    effort: int
    recall: float
    size: int
    mtime_ns: int
    checksum: str


def index_folder(name: str) -> Path:
    """The folder of an index: a path if it has a `/` or a `.`, else a name under `$XDG_DATA_HOME/vlmkit`."""
    if not name.strip() or "\0" in name:
        raise VlmkitError("the index has no name", "give -i (or $VLMKIT_INDEX) a name or a path")
    if "/" in name or "." in name:
        return Path(name)
    folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "vlmkit" / name
    if Path(name, "index.sqlite").exists() and not folder.exists():
        raise VlmkitError(f"no index has the name {name}, but the folder {name} here is one", f"write -i ./{name}")
    return folder


def vectors_path(folder: Path, generation: int) -> Path:
    return folder / f"vectors-{generation}.f16"


def built_path(folder: Path, number: int) -> Path:
    return folder / f"ann-{number}.faiss"


def connect(folder: Path, *, write: bool = True) -> sqlite3.Connection:
    path = (folder / "index.sqlite").absolute()
    mode = "rwc" if write else "rw"
    if not write and not (os.access(folder, os.W_OK) and os.access(path, os.W_OK)):
        mode = "ro&immutable=1"  # nobody writes there, and SQLite could not make its shared-memory file
    db = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
    )
    db.execute("PRAGMA trusted_schema = OFF")
    if write:
        _check_ours(db)
        patiently(db, "PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 8000")
        db.execute(f"PRAGMA cache_size = {-CACHE_KIB}")
    else:
        db.execute("PRAGMA query_only = ON")
        db.execute(f"PRAGMA mmap_size = {MAPPED}")
    return db


def silent(_: str) -> None:
    """For those who do not want to hear of waiting."""


def patiently(db: sqlite3.Connection, statement: str, note: Callable[[str], None] = silent) -> None:
    """Execute `statement`, which needs a lock. While another writer has it wait; after a second `note` hears of it.

    SQLite's own waiting keeps signals waiting as well, and it gives up at once where two switch a new index to WAL.
    """
    start, noted = time.monotonic(), False
    db.execute(f"PRAGMA busy_timeout = {1000 * ASKED_SECONDS:.0f}")
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
                    note("another process writes this index: waiting for it")
                    noted = True
                time.sleep(PAUSE_SECONDS)
    finally:
        db.execute(f"PRAGMA busy_timeout = {1000 * LOCK_SECONDS:.0f}")


def _check_ours(db: sqlite3.Connection) -> int:
    """The format of the database, 0 if nothing was ever committed. Raises VlmkitError for a stranger."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # first: another writer may make them now
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION and tables:
        raise VlmkitError("the index.sqlite there is not an index of this vlmkit", "name another folder with -i")
    if version not in (0, FORMAT):
        remedy = "upgrade vlmkit" if version > FORMAT else AGAIN
        raise VlmkitError(f"the index has format {version}, this vlmkit reads {FORMAT}", remedy)
    return version if tables else 0


def read_state(db: sqlite3.Connection) -> State | None:
    """The state as of this transaction; None where nothing was ever committed. Raises VlmkitError if it is absurd."""
    if _check_ours(db) == 0:
        return None
    rows = db.execute("SELECT model, dim, slots, count, generation, built, type FROM state").fetchall()
    if len(rows) == 1:
        model, *numbers, wanted = rows[0]
        dim, slots, count, generation, built = numbers
        if (
            isinstance(model, str | None)
            and isinstance(wanted, str)
            and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
            and 0 < dim < 1 << 20
            and count <= slots
        ):
            return State(model, dim, slots, count, generation, built, wanted)
    raise sqlite3.DatabaseError("its state makes no sense")


def write_state(db: sqlite3.Connection, state: State) -> None:
    db.execute("DELETE FROM state")
    values = (state.model, state.dim, state.slots, state.count, state.generation, state.built, state.type)
    db.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def read_live(db: sqlite3.Connection, state: State) -> "np.ndarray":
    """Which slots are live: `slots` booleans."""
    import numpy as np

    row = db.execute("SELECT bitmap FROM live").fetchone()
    if row is None or not isinstance(row[0], bytes) or len(row[0]) != -(-state.slots // 8):
        raise sqlite3.DatabaseError("its bitmap of live slots has the wrong length")
    return np.unpackbits(np.frombuffer(row[0], "u1"), count=state.slots, bitorder="little").astype(bool)


def write_live(db: sqlite3.Connection, live: "np.ndarray") -> None:
    import numpy as np

    db.execute("DELETE FROM live")
    db.execute("INSERT INTO live VALUES (?)", (np.packbits(live, bitorder="little").tobytes(),))


def read_built(db: sqlite3.Connection, state: State) -> Built | None:
    """The approximate index as of this transaction, if there is one."""
    rows = db.execute("SELECT * FROM approximate").fetchall()
    if not rows:
        return None
    if len(rows) == 1 and list(map(type, rows[0])) == [int, str, str, int, int, float, int, int, str]:
        built = Built(*rows[0])
        if 0 < built.covered <= state.slots and built.number <= state.built and built.effort >= 0:
            return built
    raise sqlite3.DatabaseError("its table of the approximate index makes no sense")


def write_built(db: sqlite3.Connection, built: Built | None) -> None:
    db.execute("DELETE FROM approximate")
    if built is not None:
        values = [getattr(built, name) for name in Built.__slots__]
        db.execute("INSERT INTO approximate VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def sync_folder(folder: Path) -> None:
    """Make names that were added to the folder, or replaced, last."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def damaged(folder: Path, what: str, remedy: str = AGAIN) -> VlmkitError:
    return VlmkitError(f"the index at {folder} is damaged: {what}", remedy)


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """Errors of SQLite and of the system, as one line that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explained(folder, error) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise VlmkitError(
            f"the index at {folder}: {reason}", "name another index with -i, or free some space"
        ) from None


def _explained(folder: Path, error: sqlite3.Error) -> VlmkitError:
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
            return VlmkitError(f"the index at {folder} cannot be opened ({error})", "check the rights on that folder")
        case _:
            return damaged(folder, str(error))
