"""Index: an index open for reading."""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.index import store
from vlmkit.index.ann import AnnIndex
from vlmkit.index.base import Hit, NoIndex
from vlmkit.index.types import choose, flat
from vlmkit.index.where import Conditions, explain, matching
from vlmkit.index.words import Words, open_words
from vlmkit.io.records import Record, batched

FETCHED = 500  # records in one query of SQLite; one by one they take longer than the search


class Index:
    """An index open for reading, as it was at one moment. Raises NoIndex, or VlmkitError where it is damaged.

    `state` says what it holds, `vectors` are all slots as a read-only map (S x D float16; the dead ones too), `ann` is
    the approximate index, if there is one, `db` the database in a transaction of that moment.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._words: Words | None = None
        if not store.exists(folder):
            raise NoIndex(f"no index at {folder}", store.without_index(folder))
        with store.index_errors(folder):
            self.db = store.connect(folder, write=False)
            try:
                self._open()
            except FileNotFoundError:  # a writer went on to the next generation between our steps
                self.db.execute("COMMIT")
                try:
                    self._open()
                except FileNotFoundError as error:
                    raise store.damaged(folder, f"{Path(error.filename).name} is missing") from None

    def _open(self) -> None:
        self.db.execute("BEGIN")  # later reads see the same moment
        state = store.read_state(self.db)
        if state is None:
            raise NoIndex(f"the index at {self.folder} is empty", "pipe records into vlmkit index first")
        self.state, self.vectors = state, store.map_vectors(self.folder, state)
        info = store.read_ann(self.db, state)
        self.ann = AnnIndex(self.folder, info) if info else None

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        if self._words:
            self._words.close()
        self.db.close()
        if self.ann:
            self.ann.close()

    def __len__(self) -> int:
        return self.state.count

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def model(self) -> str | None:
        return self.state.model

    @property
    def dim(self) -> int:
        return self.state.dim

    def info(self) -> dict[str, Any]:
        """`path, model, dim, count, type, bytes, changed, reason`; `changed` is the local time of the last commit."""
        files = [entry for entry in os.scandir(self.folder) if not entry.name.endswith("-shm")]  # ours, while open
        stats = [entry.stat() for entry in files if entry.name.startswith("index.sqlite")]
        commits = [stat.st_mtime for stat in stats if stat.st_size]  # a log without pages is of who reads
        choice = choose(self.state.type, len(self), self.state.dim)
        ann = self.ann.info if self.ann else None
        reason = choice.reason
        if ann and ann.type != choice.type:
            reason += f"; until it is built {ann.type} is in use"
        elif ann:
            reason += f"; recall@10 was {ann.recall:.3f} when it was built over {ann.covered} slots"
        elif choice.factory:
            reason += "; exact until it is built"
        return {
            "path": os.path.abspath(self.folder),
            "model": self.state.model,
            "dim": self.state.dim,
            "count": len(self),
            "type": ann.type if ann else "flat",
            "bytes": sum(entry.stat().st_size for entry in files),
            "changed": datetime.fromtimestamp(max(commits)).astimezone().isoformat(timespec="seconds"),
            "reason": reason,
        }

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> list[list[Hit]]:
        """The k nearest records of each query (N x D float32, L2-normalised) by cosine, best first.

        Exact, or from the candidates of the approximate index and exact in the slots after it. With `among`, live
        slots in ascending order (int64), exact in these alone. The score is the cosine to the stored vector always.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, len(self) if among is None else len(among))
        if k < 1 or not len(queries):
            return [[] for _ in queries]
        with store.index_errors(self.folder):
            if among is not None:
                scores, slots = flat.search_rows(self.vectors, queries, k, among)
            elif self.ann:
                scores, slots = self.ann.search(self.vectors, queries, k, self._live)
            else:
                scores, slots = flat.search(self.vectors, queries, k, self._live)
            return [self._hits(row, found) for row, found in zip(scores, slots, strict=True)]

    def words(self, on_wait: Callable[[str], None] = store.silent) -> Words:
        """The words of the records, to search in; `on_wait` hears of what takes long. Raises VlmkitError."""
        if self._words is None:
            self._words = open_words(self, self._live, on_wait)
        return self._words

    def _hits(self, scores: np.ndarray, slots: np.ndarray) -> list[Hit]:
        found = sorted(zip((-scores).tolist(), slots.tolist(), strict=True))
        lines: dict[int, Any] = {}
        for some in batched((slot for _, slot in found), FETCHED):
            values = ",".join("?" * len(some))
            lines |= self.db.execute(f"SELECT slot, record FROM records WHERE slot IN ({values})", some).fetchall()
        return [Hit(min(-score, 1.0), store.parse_record(lines.get(slot), slot), slot) for score, slot in found]

    @cached_property
    def _live(self) -> np.ndarray | None:
        """Which slots are live, S booleans, or None where all are."""
        return None if self.state.count == self.state.slots else store.read_live(self.db, self.state)

    def live(self) -> np.ndarray:
        """The live slots in ascending order, int64."""
        with store.index_errors(self.folder):
            return np.arange(self.state.slots) if self._live is None else np.flatnonzero(self._live)

    def vectors_at(self, slots: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored vectors of slots, N x D float32."""
        return self.vectors[np.asarray(slots, np.int64)].astype(np.float32)

    def sample(self, count: int) -> np.ndarray:
        """The vectors of up to `count` records, evenly spaced (N x D float32)."""
        live = self.live()
        return self.vectors_at(live[np.linspace(0, len(live) - 1, min(len(live), count)).astype(np.int64)])

    def record(self, slot: int) -> Record:
        """The record in a live slot, without its embedding."""
        with store.index_errors(self.folder):
            row = self.db.execute("SELECT record FROM records WHERE slot = ?", (slot,)).fetchone()
            return store.parse_record(row and row[0], slot)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Every live slot with its record, without the embedding, in the order of the slots."""
        with store.index_errors(self.folder):
            for slot, _, line in self.lines():
                yield slot, store.parse_record(line, slot)

    def lines(self) -> Iterator[tuple[int, str, bytes]]:
        """Every live slot with the id and the JSON line of its record, in the order of the slots."""
        with store.index_errors(self.folder):
            for slot, key, line in self.db.execute("SELECT slot, id, record FROM records ORDER BY slot"):
                if not (0 <= slot < self.state.slots and isinstance(key, str) and isinstance(line, bytes)):
                    raise store.damaged(self.folder, f"the record in slot {slot}")
                yield slot, key, line

    def slot_of(self, key: str) -> int | None:
        """The slot of the record with that id."""
        with store.index_errors(self.folder):
            row = self.db.execute("SELECT slot FROM records WHERE id = ?", (key,)).fetchone()
        return row[0] if row and row[0] < self.state.slots else None

    def get(self, key: str) -> Record | None:
        """The record with that id, without its embedding."""
        slot = self.slot_of(key)
        return None if slot is None else self.record(slot)

    def get_slot(self, slot: int) -> Record | None:
        """The record in a slot, without its embedding; None for a dead slot."""
        with store.index_errors(self.folder):
            row = self.db.execute("SELECT record FROM records WHERE slot = ?", (slot,)).fetchone()
            return None if row is None else store.parse_record(row[0], slot)

    def under(self, prefix: str) -> list[Record]:
        """The records of all ids that begin with `prefix`, in the order of the slots."""
        query = "SELECT slot, record FROM records WHERE id >= ? AND id < ? ORDER BY slot"
        with store.index_errors(self.folder):
            rows = self.db.execute(query, (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))).fetchall()
            return [store.parse_record(line, slot) for slot, line in rows]

    def records_of(self, among: np.ndarray) -> Iterator[Record]:
        """The records in these live slots, without their embedding."""
        with store.index_errors(self.folder):
            for some in batched(among.tolist(), FETCHED):
                values = ",".join("?" * len(some))
                rows = self.db.execute(f"SELECT slot, record FROM records WHERE slot IN ({values})", some)
                yield from (store.parse_record(line, slot) for slot, line in rows)

    def dump(self) -> Iterator[Record]:
        """Every record with its `embedding` as it is stored (D float16), in the order of the slots."""
        return (record | {"embedding": self.vectors[slot]} for slot, record in self.records())

    def explain(self, conditions: Conditions) -> list[str]:
        """Lines about conditions that no record can meet. Raises VlmkitError for an unknown field."""
        with store.index_errors(self.folder):
            return explain((record for _, record in self.records()), conditions)

    def where(self, conditions: Conditions) -> np.ndarray:
        """The slots of the records that meet all `conditions`, ascending, int64."""
        with store.index_errors(self.folder):
            return matching(self.db, conditions)
