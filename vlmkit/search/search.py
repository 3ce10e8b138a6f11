"""The records nearest to each query, best first."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlmkit.index import Hit, Index
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

    The best `k` with a score of at least `min_score`, among the slots `among` (sorted int64; None for all) but not
    those of `without`. With `reference` (G x D float32) each hit gets `relative`, which is at least `min_relative`.
    """

    k: int = 10
    among: np.ndarray | None = None
    without: frozenset[int] = frozenset()
    min_score: float = -math.inf
    min_relative: float = -math.inf
    reference: np.ndarray | None = None


def search_one(index: Index, vector: np.ndarray, query: str, options: SearchOptions) -> Results:
    """The result list of one query vector (1 x D float32)."""
    (hits,) = search(index, vector, [{"query": query}], options)
    return Results("", hits)


def search_each(
    index: Index, queries: Iterable[tuple[Record, np.ndarray] | Failed], options: SearchOptions, batch_size: int
) -> Iterator[Results | Failed]:
    """A result list for each record with its vector (D float32), in order; hits get `query` and `query_id`.

    Failures are passed on; a vector of another length than those of the index fails.
    """
    for batch in batched(queries, batch_size):
        checked = [_check_dim(entry, index.state.dim) for entry in batch]
        found = [entry for entry in checked if not isinstance(entry, Failed)]
        names = [_name(record) for record, _ in found]
        added = [{"query": name, "query_id": record.get("id")} for name, (record, _) in zip(names, found, strict=True)]
        vectors = np.array([vector for _, vector in found])
        lists = map(Results, names, search(index, vectors, added, options))
        yield from (entry if isinstance(entry, Failed) else next(lists) for entry in checked)


def search(
    index: Index, vectors: np.ndarray, added: Iterable[Record], options: SearchOptions
) -> Iterator[list[Record]]:
    """The hits of each query (N x D float32), records with what `added` holds for it, `rank` from 1, `score`."""
    wanted = options.k + len(options.without)
    for hits, fields in zip(index.search(vectors, wanted, options.among), added, strict=True):
        chosen = [found for hit in hits if (found := _score(index, hit, options)) is not None][: options.k]
        yield [record | fields | {"rank": rank} | scores for rank, (record, scores) in enumerate(chosen, 1)]


def _score(index: Index, hit: Hit, options: SearchOptions) -> tuple[Record, Record] | None:
    """The record of a hit and its scores; None for one that the options leave out."""
    if hit.slot in options.without:
        return None
    scores = {"score": round(hit.score, 6)}
    if options.reference is not None:
        scores["relative"] = round(z_score(hit.score, index.vector(hit.slot), options.reference), 3)
    enough = scores["score"] >= options.min_score and scores.get("relative", math.inf) >= options.min_relative
    return (hit.record, scores) if enough else None


def _check_dim(query: tuple[Record, np.ndarray] | Failed, dim: int) -> tuple[Record, np.ndarray] | Failed:
    if isinstance(query, Failed) or len(query[1]) == dim:
        return query
    return Failed.of(query[0], f"the embedding has {len(query[1])} numbers, the index {dim}")


def _name(record: Record) -> str:
    values = [record[name] for name in ("image", "text") if record.get(name) is not None]
    return str(values[0] if values else record.get("id"))
