"""Index: an index open for reading."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.index import exact
from vlmkit.index.ann import Approximate
from vlmkit.index.store import State, connect, damaged, read_built, read_live, read_state, told, vectors_path
from vlmkit.index.types import choose
from vlmkit.index.where import Condition, matching
from vlmkit.io.records import Record, batched, loads

if TYPE_CHECKING:
    import numpy as np

FETCHED = 500  # records in one query of SQLite


class Hit(NamedTuple):
    """A record found, with its cosine and its slot."""

    score: float
    record: Record
    slot: int


class NoIndex(VlmkitError):
    """There is no index, or nothing was ever saved in it."""


class Index:
    """An index open for reading, as it was at one moment. Raises NoIndex, or VlmkitError where it is damaged.

    `state` says what it holds, `vectors` are all slots as a read-only map (S x D float16; the dead ones too).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "index.sqlite").is_file():
            raise NoIndex(f"no index at {folder}", "make one: vlmkit embed PHOTOS | vlmkit index -i INDEX")
        with told(folder):
            self._db = connect(folder, write=False)
            try:
                self._open()
            except FileNotFoundError:  # a writer went on to the next generation between our steps
                self._db.execute("COMMIT")
                try:
                    self._open()
                except FileNotFoundError as error:
                    raise damaged(folder, f"{Path(error.filename).name} is missing") from None

    def _open(self) -> None:
        self._db.execute("BEGIN")  # later reads see the same moment
        state = read_state(self._db)
        if state is None:
            raise NoIndex(f"the index at {self.folder} is empty", "pipe records into vlmkit index first")
        self.state, self.vectors = state, map_vectors(self.folder, state)
        built = read_built(self._db, state)
        self.approximate = Approximate(self.folder, built) if built else None

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        if self.approximate:
            self.approximate.close()

    def __len__(self) -> int:
        return self.state.count

    def info(self) -> dict[str, Any]:
        """`path, model, dim, count, type, bytes, reason`."""
        files = [entry for entry in os.scandir(self.folder) if not entry.name.endswith("-shm")]  # ours, while open
        choice = choose(self.state.type, len(self), self.state.dim)
        built = self.approximate.built if self.approximate else None
        reason = choice.reason
        if built and built.type != choice.type:
            reason += f"; until it is built {built.type} is in use"
        elif built:
            reason += f"; recall@10 was {built.recall:.3f} when it was built over {built.covered} slots"
        elif choice.factory:
            reason += "; exact until it is built"
        return {
            "path": os.path.abspath(self.folder),
            "model": self.state.model,
            "dim": self.state.dim,
            "count": len(self),
            "type": built.type if built else "flat",
            "bytes": sum(entry.stat().st_size for entry in files),
            "reason": reason,
        }

    def search(self, queries: "np.ndarray", k: int, among: "np.ndarray | None" = None) -> list[list[Hit]]:
        """The k nearest records of each query (N x D float32, L2-normalised) by cosine, best first.

        Exact, or from the candidates of the approximate index and exact in the slots after it. With `among`, live
        slots in ascending order (int64), exact in these alone. The score is the cosine to the stored vector always.
        """
        import numpy as np

        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, len(self) if among is None else len(among))
        if k < 1 or not len(queries):
            return [[] for _ in queries]
        with told(self.folder):
            if among is not None:
                scores, slots = exact.among(self.vectors, queries, k, among)
            elif self.approximate:
                scores, slots = self._search_approximately(self.approximate, queries, k)
            else:
                scores, slots = exact.search(self.vectors, queries, k, self._filter)
            return [self._hits(row, found) for row, found in zip(scores, slots, strict=True)]

    def _search_approximately(self, approximate: Approximate, queries: "np.ndarray", k: int) -> exact.Found:
        import numpy as np

        scores, slots = approximate.candidates(queries, k, self._filter)
        if not approximate.scores_are_cosines:
            scores = self._cosines(queries, slots)
        if self.state.slots > approximate.built.covered:
            near, tail = self._search_tail(approximate.built.covered, queries, k)
            scores, slots = np.hstack([scores, near]), np.hstack([slots, tail])
        if slots.shape[1] > k:
            scores, slots = exact.best(scores, slots, k)
        if slots.min() < 0:  # too few candidates were live: look everywhere
            short = np.flatnonzero((slots < 0).any(1))
            scores[short], slots[short] = exact.search(self.vectors, queries[short], k, self._filter)
        return scores, slots

    def _cosines(self, queries: "np.ndarray", slots: "np.ndarray") -> "np.ndarray":
        """The cosine of each query (N x D) with the stored vectors in its slots (N x C); -inf for slot -1."""
        import numpy as np

        scores = np.full(slots.shape, -np.inf, np.float32)
        for query, row, out in zip(queries, slots, scores, strict=True):
            there = row >= 0
            out[there] = self.vectors[row[there]].astype(np.float32) @ query
        return scores

    def _search_tail(self, covered: int, queries: "np.ndarray", k: int) -> exact.Found:
        """The nearest slots that came after the approximate index was built."""
        import numpy as np

        live = None if self._filter is None else self._filter[covered:]
        count = min(k, self.state.slots - covered if live is None else int(np.count_nonzero(live)))
        if count < 1:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        scores, slots = exact.search(self.vectors[covered:], queries, count, live)
        return scores, slots + covered

    def _hits(self, scores: "np.ndarray", slots: "np.ndarray") -> list[Hit]:
        found = sorted(zip((-scores).tolist(), slots.tolist(), strict=True))
        lines: dict[int, Any] = {}
        for some in batched((slot for _, slot in found), FETCHED):  # one by one they take longer than the search
            marks = ",".join("?" * len(some))
            lines |= self._db.execute(f"SELECT slot, record FROM records WHERE slot IN ({marks})", some).fetchall()
        return [Hit(min(-score, 1.0), self.parsed(lines.get(slot, b""), slot), slot) for score, slot in found]

    @cached_property
    def _filter(self) -> "np.ndarray | None":
        """Which slots are live, or None where all are."""
        return None if self.state.count == self.state.slots else read_live(self._db, self.state)

    def live(self) -> "np.ndarray":
        """The live slots in ascending order, int64."""
        import numpy as np

        with told(self.folder):
            return np.flatnonzero(read_live(self._db, self.state))

    def record(self, slot: int) -> Record:
        """The record in a live slot, without its embedding."""
        row = self._db.execute("SELECT record FROM records WHERE slot = ?", (slot,)).fetchone()
        return self.parsed(row[0] if row else b"", slot)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Every live slot with its record, without the embedding, in the order of the slots."""
        return ((slot, self.parsed(line, slot)) for slot, _, line in self.lines())

    def lines(self) -> Iterator[tuple[int, str, bytes]]:
        """Every live slot with the id and the JSON line of its record, in the order of the slots."""
        with told(self.folder):
            for slot, key, line in self._db.execute("SELECT slot, id, record FROM records ORDER BY slot"):
                if not (0 <= slot < self.state.slots and isinstance(key, str) and isinstance(line, bytes)):
                    raise damaged(self.folder, f"the record in slot {slot}")
                yield slot, key, line

    def get(self, key: str) -> Record | None:
        """The record with that id, without its embedding."""
        slot = self.slot_of(key)
        return None if slot is None else self.record(slot)

    def slot_of(self, key: str) -> int | None:
        """The slot of the record with that id."""
        with told(self.folder):
            row = self._db.execute("SELECT slot FROM records WHERE id = ?", (key,)).fetchone()
        return row[0] if row and row[0] < self.state.slots else None

    def where(self, conditions: Sequence[Condition]) -> "np.ndarray":
        """The slots of the records that meet all `conditions`, ascending, int64."""
        with told(self.folder):
            return matching(self._db, conditions)

    def vector(self, slot: int) -> "np.ndarray":
        """The stored vector of a slot, D float32."""
        import numpy as np

        return self.vectors[slot].astype(np.float32)

    def dump(self) -> Iterator[Record]:
        """Every record with its `embedding` as it is stored (D float16), in the order of the slots."""
        return (record | {"embedding": self.vectors[slot]} for slot, record in self.records())

    def verify(self) -> None:
        """Check every invariant; raises VlmkitError with the first that does not hold."""
        from vlmkit.index.maintenance import verify

        with told(self.folder):
            verify(self, self._db)

    def parsed(self, line: Any, slot: int) -> Record:
        """The record in `line`. Raises VlmkitError where it is none."""
        try:
            record = loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise damaged(self.folder, f"the record in slot {slot}")
        return record


def map_vectors(folder: Path, state: State) -> "np.ndarray":
    """All slots, dead ones too, as a read-only map: S x D float16. Raises FileNotFoundError and VlmkitError."""
    import numpy as np

    path, size = vectors_path(folder, state.generation), 2 * state.slots * state.dim
    if path.stat().st_size < size:
        raise damaged(folder, f"{path.name} is too short")
    if not size:
        return np.empty((0, state.dim), "<f2")
    return np.memmap(path, "<f2", "r", shape=(state.slots, state.dim))
