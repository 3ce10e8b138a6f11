"""Several indexes searched as one, with the results of an index into which they were merged in this order."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from heapq import merge
from itertools import accumulate, groupby

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.index import store
from vlmkit.index.base import Hit
from vlmkit.index.reader import FETCHED, Index
from vlmkit.index.where import Conditions, explain
from vlmkit.index.words import Words
from vlmkit.io.records import Record, batched, fingerprint_of


class Parts:
    """Indexes open for reading, as one. Raises VlmkitError unless all hold vectors of one model.

    A record is hidden by one of the same id in a later part. Its slot is that of its part plus the slots of all parts
    before.
    """

    def __init__(self, parts: Sequence[Index]) -> None:
        self.parts = parts
        self.name = " + ".join(part.name for part in parts)
        self.model, self.dim = parts[0].model, parts[0].dim
        self._starts = [0, *accumulate(part.state.slots for part in parts[:-1])]
        for part in parts[1:]:
            if fingerprint_of(part.model or "") != fingerprint_of(self.model or "") or part.dim != self.dim:
                what = f"the index at {part.name} holds vectors of {part.model}, not of {self.model}"
                raise VlmkitError(what, "search them one after the other")

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_: object) -> None:
        for part in self.parts:
            part.__exit__()

    def __len__(self) -> int:
        return len(self._live)

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> list[list[Hit]]:
        """As `Index.search`; `among` are slots of the whole."""
        found: list[list[Hit]] = [[] for _ in queries]
        for number, (part, start) in enumerate(zip(self.parts, self._starts, strict=True)):
            some = None
            if among is not None:
                first, last = np.searchsorted(among, [start, start + part.state.slots])
                some = among[first:last] - start
            for hits, more in zip(found, self._search_part(number, queries, k, some), strict=True):
                hits += (hit._replace(slot=hit.slot + start) for hit in more)
        return [sorted(hits, key=lambda hit: (-hit.score, hit.slot))[:k] for hits in found]

    def _search_part(self, number: int, queries: np.ndarray, k: int, among: np.ndarray | None) -> list[list[Hit]]:
        """The k nearest of each query in one part that no later part hides; more are asked for until there are k."""
        wanted, later = k, self.parts[number + 1 :]
        while True:
            lists = self.parts[number].search(queries, wanted, among)
            kept = [[hit for hit in hits if not _is_in(later, str(hit.record["id"]))] for hits in lists]
            if all(len(ours) >= k or len(hits) < wanted for ours, hits in zip(kept, lists, strict=True)):
                return kept
            wanted *= 2

    @cached_property
    def _live(self) -> np.ndarray:
        """The slots of the records that are not hidden, ascending, int64."""
        live = [part.live() + start for part, start in zip(self.parts, self._starts, strict=True)]
        ids = [_ids(part, start) for part, start in zip(self.parts, self._starts, strict=True)]
        same = (sorted(slot for _, slot in rows) for _, rows in groupby(merge(*ids), key=lambda row: row[0]))
        hidden = np.fromiter((slot for slots in same for slot in slots[:-1]), np.int64)
        return np.setdiff1d(np.concatenate(live), hidden, assume_unique=True)

    def where(self, conditions: Conditions) -> np.ndarray:
        """The slots of the records that meet all `conditions`, ascending, int64."""
        found = [part.where(conditions) + start for part, start in zip(self.parts, self._starts, strict=True)]
        return np.intersect1d(np.concatenate(found), self._live, assume_unique=True)

    def records_of(self, among: np.ndarray) -> Iterator[Record]:
        """The records in these slots, ascending ones."""
        for part, start in zip(self.parts, self._starts, strict=True):
            first, last = np.searchsorted(among, [start, start + part.state.slots])
            yield from part.records_of(among[first:last] - start)

    def explain(self, conditions: Conditions) -> list[str]:
        """As `Index.explain`, of all parts together."""
        return explain((record for part in self.parts for _, record in part.records()), conditions)

    def slot_of(self, key: str) -> int | None:
        """The slot of the record with that id."""
        for part, start in zip(reversed(self.parts), reversed(self._starts), strict=True):
            if (slot := part.slot_of(key)) is not None:
                return slot + start
        return None

    def record(self, slot: int) -> Record:
        """The record in a live slot, without its embedding."""
        number = bisect_right(self._starts, slot) - 1
        return self.parts[number].record(slot - self._starts[number])

    def words(self, on_wait: Callable[[str], None] = store.silent) -> "WordsOfParts":
        """The words of the records, as `Index.words`."""
        return WordsOfParts(self.parts, self._starts, [part.words(on_wait) for part in self.parts])

    def vectors_at(self, slots: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored vectors of slots, N x D float32."""
        found = np.empty((len(slots), self.dim), np.float32)
        for row, slot in enumerate(slots):
            number = bisect_right(self._starts, slot) - 1
            found[row] = self.parts[number].vectors[slot - self._starts[number]]
        return found

    def sample(self, count: int) -> np.ndarray:
        """The vectors of up to `count` records, evenly spaced (N x D float32)."""
        return self.vectors_at(self._live[np.linspace(0, len(self) - 1, min(len(self), count)).astype(np.int64)])


class WordsOfParts:
    """A `WordTable` of several indexes as one, in slots of the whole; BM25 is that within each."""

    def __init__(self, parts: Sequence[Index], starts: Sequence[int], words: Sequence[Words]) -> None:
        self._parts, self._starts, self._words = parts, starts, words
        self.total = sum(table.total for table in words)

    def count(self, match: str, most: int) -> int:
        return min(most, sum(words.count(match, most) for words in self._words))

    def find(self, match: str, most: int, *, ranked: bool = True) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for number, (words, start) in enumerate(zip(self._words, self._starts, strict=True)):
            slots, scores = words.find(match, most, ranked=ranked)
            shown = ~np.isin(slots, _hidden(self._parts[number], slots, self._parts[number + 1 :]))
            found.append((slots[shown] + start, scores[shown]))
        slots, scores = zip(*found, strict=True)
        return np.concatenate(slots)[:most], np.concatenate(scores)[:most]


def _hidden(part: Index, slots: np.ndarray, later: Sequence[Index]) -> list[int]:
    """Those of `slots` whose records are hidden by later parts."""
    hidden: list[int] = []
    for some in batched(slots.tolist() if later else [], FETCHED):
        marks = ",".join("?" * len(some))
        with store.index_errors(part.folder):
            ids = dict(part.db.execute(f"SELECT id, slot FROM records WHERE slot IN ({marks})", some).fetchall())
        for other in later:
            with store.index_errors(other.folder):
                same = other.db.execute(f"SELECT id FROM records WHERE id IN ({marks})", list(ids)).fetchall()
            hidden += (ids[key] for (key,) in same)
    return hidden


def _ids(part: Index, start: int) -> Iterator[tuple[str, int]]:
    """The ids of a part in ascending order, each with its slot in the whole."""
    with store.index_errors(part.folder):
        for key, slot in part.db.execute("SELECT id, slot FROM records ORDER BY id"):
            yield key, slot + start


def _is_in(parts: Sequence[Index], key: str) -> bool:
    return any(part.slot_of(key) is not None for part in parts)
