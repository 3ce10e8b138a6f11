"""The words of an index: what is written in its pictures, said of them, and their names, in SQLite's FTS5.

Table `words` is derived, like an approximate index: table `words_covered` says how many slots of which generation are
in it. A slot keeps its record while a generation lasts, so rows are only added, and those of dead slots are left out
when they are found. `vlmkit index` brings it up to date; what it leaves for speed, or another vlmkit did not know of,
the first search does. Where that cannot write, it makes a table in memory.

FTS5 gets texts as `fold` and `spelled` make them, so that search folds a query in the same way.
"""

import os
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np

from vlmkit.index import store
from vlmkit.io.records import Record, batched
from vlmkit.io.sources import is_data, is_url

if TYPE_CHECKING:
    from pathlib import Path

    from vlmkit.index.reader import Index

FIELDS = ("ocr", "caption", "captions", "text")
NAME = "name"  # of the file: it stands in `image`
FORM = 1  # of what is in the table: one more with each change of `texts_of`, `fold` or `spelled`
LEFT = 20_000  # slots that vlmkit index leaves to the first search: more would slow it down
TOLD = 200_000  # slots whose words take a second
ROWS = 5000  # in one statement
APART = " \ue000 "  # between two texts, so that no phrase spans them: for FTS5 it is a word
SCHEMA = """
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(body, content='', tokenize='unicode61 remove_diacritics 2');
CREATE TABLE IF NOT EXISTS words_covered (generation INTEGER NOT NULL, slots INTEGER NOT NULL, form INTEGER NOT NULL);
"""
TOKEN = re.compile(r"[^\W_]+")
# Patterns that texts in ASCII do not need, and that take long to compile
ACCENTS = "[\u0300-\u036f]"
UNSPACED = "([\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])"  # Thai, Japanese, Chinese
LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ð": "d", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th"})
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
MEMBER = re.compile(r"#(?:page|t)=[\d.]+$")  # of a document or film


def fold(text: str) -> str:
    """`text` without case, accents and ligatures; characters of scripts without spaces are words of their own."""
    if text.isascii():
        return text.lower()
    bare = re.sub(ACCENTS, "", unicodedata.normalize("NFKD", text).casefold()).translate(LETTERS)
    return re.sub(UNSPACED, r" \1 ", unicodedata.normalize("NFC", bare))


def transcribed(text: str) -> str:
    """`text` with German umlauts written as two letters, as where there is no key for them."""
    return text if text.isascii() else unicodedata.normalize("NFC", text).lower().translate(UMLAUTS)


def spelled(text: str) -> str:
    """`text` as it goes into the table: folded, and its words with umlauts in their other spelling behind it."""
    if text.isascii():
        return text
    others = [word for word in unicodedata.normalize("NFC", text).lower().split() if word.translate(UMLAUTS) != word]
    folded = " ".join(TOKEN.findall(fold(text)))
    return APART.join([folded, *(" ".join(TOKEN.findall(fold(transcribed(word)))) for word in others)])


def texts_of(record: Record) -> Iterator[tuple[str, str]]:
    """The texts of a record by their fields: what is written in the picture, said of it, its file's name."""
    for field in FIELDS:
        value = record.get(field)
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str) and text:
                yield field, text
    image = record.get("image")
    if isinstance(image, str) and not is_data(image):
        yield NAME, name_words(image)


def name_words(image: str) -> str:
    """The name of a file without its ending, and that of its folder."""
    path = unquote(urlsplit(image).path) if is_url(image) else MEMBER.sub("", image)
    folder, _, name = path.rpartition("/")
    return f"{os.path.splitext(name)[0]} {folder.rpartition('/')[2]}"


class Words:
    """The table `words` as far as an index goes: a `WordTable`. It is in the index's own database, or in `db`."""

    def __init__(self, index: "Index", live: np.ndarray | None, db: sqlite3.Connection | None = None) -> None:
        self.total, self._folder, self._slots, self._live = len(index), index.folder, index.state.slots, live
        self._own, self._db = db, db or index.db

    def close(self) -> None:
        if self._own:
            self._own.close()

    def count(self, match: str, most: int) -> int:
        return self._rows(f"SELECT count(*) FROM (SELECT rowid FROM {self._where} LIMIT {most})", match)[0][0]

    def find(self, match: str, most: int, *, ranked: bool = True) -> tuple[np.ndarray, np.ndarray]:
        score = "-bm25(words)" if ranked else "0"
        rows = self._rows(f"SELECT rowid, {score} FROM {self._where} LIMIT {most}", match)
        found = np.array(rows, np.float64).reshape(-1, 2)
        slots, scores = found[:, 0].astype(np.int64), found[:, 1]
        if self._live is None:
            return slots, scores
        return slots[self._live[slots]], scores[self._live[slots]]

    @property
    def _where(self) -> str:
        return f"words WHERE words MATCH ? AND rowid < {self._slots}"

    def _rows(self, query: str, match: str) -> list[tuple]:
        with store.index_errors(self._folder):
            return self._db.execute(query, (match,)).fetchall()


def open_words(index: "Index", live: np.ndarray | None, on_wait: Callable[[str], None] = store.silent) -> Words:
    """The words of `index`, brought up to date; `on_wait` hears of what takes long. Raises VlmkitError."""
    with store.index_errors(index.folder):
        if _is_covered(index.db, index.state):
            return Words(index, live)
        if index.state.slots > TOLD:
            on_wait(f"reading the words of {len(index):,} records, which the next search finds ready")
        if os.access(index.folder, os.W_OK) and catch_up(index.folder, wait=False):
            db = store.connect(index.folder, write=False)
            db.execute("BEGIN")
            if _is_covered(db, index.state):
                return Words(index, live, db)
            db.close()  # vectors were rewritten meanwhile
        return Words(index, live, _in_memory(index.db))


def has_fts5() -> bool:
    """Whether the SQLite of this Python has full-text search."""
    with closing(sqlite3.connect(":memory:")) as db:
        return db.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone() is not None


def catch_up(folder: "Path", most: int | None = None, *, wait: bool = True) -> bool:
    """Bring the words of the index in `folder` up to date, unless more than `most` slots are missing.

    False where another process writes and nobody is to `wait` for it, and where the place is read-only.
    """
    with store.index_errors(folder), closing(store.connect(folder)) as db:
        state = store.read_state(db) if has_fts5() else None
        if state is None or (most is not None and state.slots - _covered(db, state) > most):
            return False
        try:
            if wait:
                store.execute_waiting(db, "BEGIN IMMEDIATE")
            else:
                db.execute("PRAGMA busy_timeout = 0")
                db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY):
                return False
            raise
        try:
            _extend(db)
            db.execute("COMMIT")
        except BaseException:  # a signal too must end the transaction
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return True


def _extend(db: sqlite3.Connection) -> None:
    """Add what is missing, in the transaction that is open."""
    state = store.read_state(db)
    if state is None:
        return
    covered = _covered(db, state)
    if not covered:
        db.execute("DROP TABLE IF EXISTS words")
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    _insert(db, db, covered)
    db.execute("DELETE FROM words_covered")
    db.execute("INSERT INTO words_covered VALUES (?, ?, ?)", (state.generation, state.slots, FORM))


def _insert(db: sqlite3.Connection, source: sqlite3.Connection, start: int) -> None:
    """Add the words of the records of `source` from slot `start` on."""
    rows = source.execute("SELECT slot, record FROM records WHERE slot >= ? ORDER BY slot", (start,))
    for some in batched(_bodies(rows), ROWS):
        values = ",".join(["(?,?)"] * len(some))
        db.execute(f"INSERT INTO words(rowid, body) VALUES {values}", list(chain.from_iterable(some)))


def _bodies(rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, str]]:
    for slot, line in rows:
        texts = [spelled(text) for _, text in texts_of(store.parse_record(line, slot))]
        if texts:
            yield slot, APART.join(texts)


def _covered(db: sqlite3.Connection, state: store.State) -> int:
    """How many slots of this generation are in the table; 0 where there is none, or one of another form."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'words_covered'").fetchone():
        return 0
    known = "SELECT slots FROM words_covered WHERE generation = ? AND form = ?"
    row = db.execute(known, (state.generation, FORM)).fetchone()
    if row and not (isinstance(row[0], int) and row[0] >= 0):
        raise sqlite3.DatabaseError("table words_covered has invalid values")
    return row[0] if row else 0


def _is_covered(db: sqlite3.Connection, state: store.State) -> bool:
    return state.slots > 0 and _covered(db, state) >= state.slots


def _in_memory(source: sqlite3.Connection) -> sqlite3.Connection:
    """A database that holds nothing but the words of the records in another one."""
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    db.executescript(SCHEMA)
    db.execute("BEGIN")
    _insert(db, source, 0)
    db.execute("COMMIT")
    return db


def check_words(index: "Index", live: np.ndarray) -> None:
    """Raise VlmkitError unless the table holds exactly the words of those `live` slots (ascending) that it covers."""
    covered = _covered(index.db, index.state)
    if not covered:
        return
    if covered > index.state.slots:
        raise store.damaged(index.folder, "its words cover more slots than there are")
    known = np.zeros(index.state.slots, bool)
    known[live[live < covered]] = True
    index.db.execute("PRAGMA query_only = OFF")  # which forbids temporary tables too
    try:
        with closing(_in_memory(index.db)) as expected:
            pairs = zip(_instances(expected, known), _instances(index.db, known), strict=True)
            is_right = all(one == other for one, other in pairs)
    except ValueError:  # one has more than the other
        is_right = False
    finally:
        index.db.execute("PRAGMA query_only = ON")
    if not is_right:
        remedy = "copy its records into a new one: vlmkit index --dump | vlmkit index -i NEW"
        raise store.damaged(index.folder, "its words are not those of its records", remedy)


def _instances(db: sqlite3.Connection, known: np.ndarray) -> Iterator[tuple[str, int, int]]:
    """Each word of the slots that are `known`, with its slot and its place there."""
    db.execute("CREATE VIRTUAL TABLE IF NOT EXISTS temp.instances USING fts5vocab(main, words, instance)")
    for term, slot, place in db.execute("SELECT term, doc, offset FROM temp.instances"):
        if slot < len(known) and known[slot]:
            yield term, slot, place
