"""Results by place: the nearest first, or how far away those of another search were taken."""

from collections.abc import Iterable, Iterator
from heapq import nsmallest
from typing import Any, TypeVar

from vlmkit.index import VectorIndex
from vlmkit.index.near import Near
from vlmkit.io.records import Failed, Record
from vlmkit.search.search import Results

T = TypeVar("T", Results, Results | Failed)


def nearest(index: VectorIndex, near: Near, among: Any, k: int) -> Results:
    """The `k` records of `among` taken nearest to a place, with `rank` from 1 and `distance` in kilometres."""
    found = (record | {"distance": _distance(near, record)} for record in index.records_of(among))
    hits = nsmallest(k, found, key=lambda record: (record["distance"], str(record["id"])))
    return Results("", [record | {"rank": rank} for rank, record in enumerate(hits, 1)])


def with_distances(results: Iterable[T], near: Near) -> Iterator[T]:
    """`results`, each hit with its `distance` in kilometres."""
    for found in results:
        if not isinstance(found, Failed):
            for record in found.records:
                record["distance"] = _distance(near, record)
        yield found


def _distance(near: Near, record: Record) -> float:
    return round(near.distance(record) or 0.0, 3)
