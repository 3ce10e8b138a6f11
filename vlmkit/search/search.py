"""The records nearest to each query, best first."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vlmkit.index import Hit, VectorIndex
from vlmkit.index.base import Slot
from vlmkit.io.records import Failed, Record, batched
from vlmkit.search.reference import z_score


class Results(NamedTuple):
    """One result list: a heading for it, its records, and the pictures to show where those are not the records."""

    heading: str
    records: list[Record]
    pictures: list[Record] | None = None


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Options of a search.

    The best `k` with a score of at least `min_score`, among those that `where` of the index found (None for all) but
    not the slots `without`. With `reference` (G x D float32) each hit gets `relative`, at least `min_relative`.
    """

    k: int = 10
    among: Any = None
    without: frozenset[Slot] = frozenset()
    min_score: float = -math.inf
    min_relative: float = -math.inf
    reference: np.ndarray | None = None


def search_one(index: VectorIndex, vector: np.ndarray, query: str, options: SearchOptions) -> Results:
    """The result list of one query vector (1 x D float32)."""
    (hits,) = search(index, vector, [{"query": query}], options)
    return Results("", hits)


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
        lists = map(Results, names, search(index, vectors, added, options))
        yield from (entry if isinstance(entry, Failed) else next(lists) for entry in checked)


def search(
    index: VectorIndex, vectors: np.ndarray, added: Iterable[Record], options: SearchOptions
) -> Iterator[list[Record]]:
    """The hits of each query (N x D float32), records with what `added` holds for it, `rank` from 1, `score`."""
    wanted = options.k + len(options.without)
    for hits, fields in zip(index.search(vectors, wanted, options.among), added, strict=True):
        near = [hit for hit in hits if hit.slot not in options.without]
        chosen = [found for found in _scored(index, near, options) if _is_enough(found[1], options)][: options.k]
        yield [record | fields | {"rank": rank} | scores for rank, (record, scores) in enumerate(chosen, 1)]


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


def _name(record: Record) -> str:
    values = [record[name] for name in ("image", "text") if record.get(name) is not None]
    return str(values[0] if values else record.get("id"))
