"""The records nearest to each query by meaning, and with its words, best first.

Where records have words of the query well enough (see `words`), the two lists become one by reciprocal rank fusion
(Cormack, Clarke and Buettcher 2009): a record's place is by the sum of 1 / (60 + rank) over the lists that it is in.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vlmkit.index import Hit, VectorIndex
from vlmkit.index.base import Slot, WordIndex
from vlmkit.io.records import Failed, Record, batched
from vlmkit.search.reference import z_score
from vlmkit.search.words import WordHits, match_line

FUSED = 60  # k of reciprocal rank fusion
DEPTH = 1000  # records of each list that are fused

FindWords = Callable[[Sequence[str]], WordHits | None]


class Results(NamedTuple):
    """One result list: a heading for it, its records, and the pictures to show where those are not the records."""

    heading: str
    records: list[Record]
    pictures: list[Record] | None = None


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Options of a search.

    The best `k` with a score of at least `min_score`, among those that `where` of the index found (None for all) but
    not the slots `without`. With `reference` (G x D float32) each hit gets `relative`, at least `min_relative`. `words`
    finds what has the words of texts well enough to be fused with what is near, None where nothing has.
    """

    k: int = 10
    among: Any = None
    without: frozenset[Slot] = frozenset()
    min_score: float = -math.inf
    min_relative: float = -math.inf
    reference: np.ndarray | None = None
    words: FindWords | None = None


def search_one(
    index: VectorIndex, vector: np.ndarray, query: str, options: SearchOptions, texts: Sequence[str] = ()
) -> Results:
    """The result list of one query vector (1 x D float32), and of the words of its `texts`."""
    (hits,) = search(index, vector, [{"query": query}], options, [texts])
    return Results("", hits)


def search_words(index: WordIndex, found: WordHits, fields: Record, options: SearchOptions) -> Results:
    """The result list of words alone, whose records have no `score`."""
    slots = [slot for slot in found.slots[found.order()].tolist() if slot not in options.without][: options.k]
    records = [index.record(slot) for slot in slots]
    return Results("", [r | fields | {"rank": rank} | match_line(r, found) for rank, r in enumerate(records, 1)])


def search_each(
    index: VectorIndex, queries: Iterable[tuple[Record, np.ndarray] | Failed], options: SearchOptions, batch_size: int
) -> Iterator[Results | Failed]:
    """A result list for each record with its vector (D float32), in order; hits get `query` and `query_id`.

    Failures are passed on; a vector of another length than those of the index fails.
    """
    for batch in batched(queries, batch_size):
        checked = [_check_dim(entry, index.dim) for entry in batch]
        found = [entry for entry in checked if not isinstance(entry, Failed)]
        names = [_name(record) for record, _ in found]
        added = [{"query": name, "query_id": record.get("id")} for name, (record, _) in zip(names, found, strict=True)]
        vectors = np.array([vector for _, vector in found])
        texts = [[record["text"]] if is_text(record) else [] for record, _ in found]
        lists = map(Results, names, search(index, vectors, added, options, texts))
        yield from (entry if isinstance(entry, Failed) else next(lists) for entry in checked)


def search(
    index: VectorIndex,
    vectors: np.ndarray,
    added: Iterable[Record],
    options: SearchOptions,
    texts: Iterable[Sequence[str]] | None = None,
) -> Iterator[list[Record]]:
    """The hits of each query (N x D float32), records with what `added` holds for it, `rank` from 1, `score`.

    `texts` are those of which the words of each query are.
    """
    find = options.words
    words = [find(some) if find and some else None for some in texts or [()] * len(vectors)]
    plain = [row for row, found in enumerate(words) if not found]
    wanted = options.k + len(options.without)
    near = dict(zip(plain, index.search(vectors[plain], wanted, options.among), strict=True))
    for row, (found, fields) in enumerate(zip(words, added, strict=True)):
        hits = _fused(index, vectors[row : row + 1], found, options, wanted) if found else near[row]
        kept = [hit for hit in hits if hit.slot not in options.without and round(hit.score, 6) >= options.min_score]
        if math.isinf(options.min_relative):
            kept = kept[: options.k]
        chosen = [pair for pair in _scored(index, kept, options) if _is_enough(pair[1], options)][: options.k]
        yield [
            record | fields | {"rank": rank} | scores | (match_line(record, found) if found else {})
            for rank, (record, scores) in enumerate(chosen, 1)
        ]


def _fused(index: VectorIndex, vector: np.ndarray, found: WordHits, options: SearchOptions, wanted: int) -> list[Hit]:
    """The hits by meaning and by words, best first; of equal ones first that of words."""
    near = index.search(vector, max(wanted, DEPTH), options.among)[0]
    order = found.order(index.vectors_at(found.slots.tolist()) @ vector[0])[:DEPTH]
    worded = found.slots[order].tolist()
    places: dict[Slot, float] = {slot: 1 / (FUSED + rank) for rank, slot in enumerate(worded, 1)}
    for rank, hit in enumerate(near, 1):
        places[hit.slot] = places.get(hit.slot, 0.0) + 1 / (FUSED + rank)
    hits = {hit.slot: hit for hit in near}
    if missing := np.array(sorted(set(worded) - hits.keys()), np.int64).tolist():
        hits |= {hit.slot: hit for hit in index.search(vector, len(missing), np.array(missing))[0]}
    return [hits[slot] for slot in sorted(places, key=lambda slot: -places[slot]) if slot in hits]


def _scored(index: VectorIndex, hits: list[Hit], options: SearchOptions) -> list[tuple[Record, Record]]:
    """The record of each hit and its scores."""
    scores: list[Record] = [{"score": round(hit.score, 6)} for hit in hits]
    if options.reference is not None and hits:
        vectors = index.vectors_at([hit.slot for hit in hits])
        for hit, vector, score in zip(hits, vectors, scores, strict=True):
            score["relative"] = round(z_score(hit.score, vector, options.reference), 3)
    return [(hit.record, score) for hit, score in zip(hits, scores, strict=True)]


def _is_enough(scores: Record, options: SearchOptions) -> bool:
    return scores["score"] >= options.min_score and scores.get("relative", math.inf) >= options.min_relative


def _check_dim(query: tuple[Record, np.ndarray] | Failed, dim: int) -> tuple[Record, np.ndarray] | Failed:
    if isinstance(query, Failed) or len(query[1]) == dim:
        return query
    return Failed.of(query[0], f"the embedding has {len(query[1])} numbers, the index {dim}")


def is_text(record: Record) -> bool:
    """Whether a query of --queries is its text."""
    return record.get("image") is None and isinstance(record.get("text"), str)


def _name(record: Record) -> str:
    values = [record[name] for name in ("image", "text") if record.get(name) is not None]
    return str(values[0] if values else record.get("id"))
