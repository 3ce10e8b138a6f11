"""The background of a score: how well anything matches that picture. A hit is a find where it stands out from it.

`relative` is the standard score of a hit's cosine among the cosines of the same picture with 153 everyday texts (with
pictures of the index, where the query has no words). Unlike the standard score over the index it works in a small one,
and unlike a cosine it counts in standard deviations, whatever the model's scale. tests/benchmarks/relative.py measures
how well each tells that there is nothing like the query.

search: the records nearest to each query, best first.
"""

import contextlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.index import Hit, Index
from vlmkit.io.files import atomic_write, cache_folder
from vlmkit.io.records import Failed, Record, batched, fingerprint_of
from vlmkit.models.types import Embedder

if TYPE_CHECKING:
    import numpy as np


PICTURES = 256  # of the index, evenly spaced
FORMS = ("{}", "a {}", "a photo of a {}")  # as people write queries


@cache
def texts() -> list[str]:
    """The everyday texts."""
    words = files("vlmkit.search").joinpath("reference_texts.txt").read_text().split("\n")
    return [FORMS[i % len(FORMS)].format(word) for i, word in enumerate(filter(None, words))]


def of_texts(model: Embedder) -> "np.ndarray":
    """The vectors of the everyday texts (G x D float32), remembered in the cache folder for each model."""
    import numpy as np

    mark = zlib.crc32("\n".join(texts()).encode())
    memory = cache_folder() / f"background-{fingerprint_of(model.identity)}-{mark:08x}.npy"
    shape = (len(texts()), model.dim)
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or not whole: it is only a cache
        known = np.load(memory, allow_pickle=False)
        if known.shape == shape and np.isfinite(known).all():
            return known.astype(np.float32)
    found = model.embed_texts(texts())
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(memory, durable=False) as file:
            np.save(file, found)
    return found


def of_pictures(index: Index) -> "np.ndarray":
    """Vectors of up to 256 records of the index, evenly spaced (G x D float32)."""
    import numpy as np

    live = index.live()
    some = live[np.linspace(0, len(live) - 1, min(len(live), PICTURES)).astype(np.int64)]
    return index.vectors[some].astype(np.float32)


def relative(score: float, vector: "np.ndarray", background: "np.ndarray") -> float:
    """By how many standard deviations `score` exceeds the cosines of `vector` (D) with `background` (G x D)."""
    cosines = background @ vector
    spread = float(cosines.std())
    return (score - float(cosines.mean())) / spread if spread > 1e-6 else 0.0


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
