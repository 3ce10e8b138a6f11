"""search: the records nearest to each query, best first."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.background import relative
from vlmkit.index import Hit, Index
from vlmkit.records import Failed, Record, batched

if TYPE_CHECKING:
    import numpy as np


class Found(NamedTuple):
    """One result: a heading for it, its records, and the pictures to show where those are not the records."""

    heading: str
    records: list[Record]
    pictures: list[Record] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which records of an index come into question.

    The best `k` with a score of at least `floor`, among the slots `among` (sorted int64; None for all) but not those
    of `without`. With `background` (G x D float32) each hit gets `relative`, and `floor` is one for that.
    """

    k: int = 10
    among: "np.ndarray | None" = None
    without: frozenset[int] = frozenset()
    floor: float | None = None
    background: "np.ndarray | None" = None


def search(index: Index, vectors: "np.ndarray", added: Iterable[Record], choice: Choice) -> Iterator[list[Record]]:
    """The hits of each query (N x D float32), records with what `added` holds for it, `rank` from 1, `score`."""
    for hits, fields in zip(index.search(vectors, choice.k + len(choice.without), choice.among), added, strict=True):
        chosen = [found for hit in hits if (found := _chosen(index, hit, choice)) is not None][: choice.k]
        yield [record | fields | {"rank": rank} | scores for rank, (record, scores) in enumerate(chosen, 1)]


def _chosen(index: Index, hit: Hit, choice: Choice) -> tuple[Record, Record] | None:
    """The record of a hit and its scores; None for one that the choice leaves out."""
    if hit.slot in choice.without:
        return None
    scores = {"score": round(hit.score, 6)}
    if choice.background is not None:
        scores["relative"] = round(relative(hit.score, index.vector(hit.slot), choice.background), 3)
    decisive = scores.get("relative", scores["score"])
    return (hit.record, scores) if choice.floor is None or decisive >= choice.floor else None


def search_one(index: Index, vector: "np.ndarray", query: str, choice: Choice) -> Found:
    """The result list of one query vector (1 x D float32)."""
    (hits,) = search(index, vector, [{"query": query}], choice)
    return Found("", hits)


def search_each(
    index: Index, queries: "Iterable[tuple[Record, np.ndarray]]", choice: Choice, batch_size: int
) -> Iterator[Found]:
    """A result list for each record with its vector (D float32), in order; hits get `query` and `query_id`."""
    import numpy as np

    for batch in batched(queries, batch_size):
        added = [{"query": _name(record), "query_id": record.get("id")} for record, _ in batch]
        lists = search(index, np.stack([vector for _, vector in batch]), added, choice)
        yield from (Found(str(fields["query"]), hits) for fields, hits in zip(added, lists, strict=True))


def _name(record: Record) -> str:
    image, text = record.get("image"), record.get("text")
    return str(image if image is not None else text if text is not None else record.get("id"))


def fitting(
    queries: "Iterable[tuple[Record, np.ndarray] | Failed]", dim: int
) -> "Iterator[tuple[Record, np.ndarray] | Failed]":
    """`queries`, where a vector whose length is not `dim` fails."""
    for found in queries:
        if not isinstance(found, Failed) and len(found[1]) != dim:
            yield Failed.of(found[0], f"the embedding has {len(found[1])} numbers, the index {dim}")
        else:
            yield found
