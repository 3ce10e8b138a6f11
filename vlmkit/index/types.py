"""Types of index: their names, FAISS's factory string for each, and which one suits which size.

Exact search reads every vector and needs no building: 512 MB (1,000,000 x 256) take a third of the time of FAISS's flat
index (tests/benchmarks/RESULTS.md), so half of that is where it is still quick. Above, IVF with float16 codes is near
exact, and costs the vectors' size again on the disk and, for what queries visit, in memory. From 4 GB on, product
quantisation (Jegou et al. 2011) with a byte for four numbers makes that an eighth.
"""

import math
from typing import NamedTuple

from vlmkit.errors import VlmkitError

NAMES = ("auto", "flat", "hnsw", "ivf", "ivfpq")
EXACT_BYTES = 256 << 20
CODED_BYTES = 4 << 30
FEW = 4096  # vectors: training codebooks on them would take longer than it could ever save


class Choice(NamedTuple):
    """A type, FAISS's factory string for it (None: exact search), and why it was taken."""

    type: str
    factory: str | None
    reason: str


def choose(wanted: str, count: int, dim: int) -> Choice:
    """The type for `count` vectors of D = `dim` numbers, where `wanted` was asked for."""
    if wanted != "auto":
        return Choice(wanted, _factory(wanted, count, dim), f"{wanted} was asked for")
    size = 2 * dim * count
    told = f"auto: {count} vectors take {size / (1 << 20):.1f} MB"
    if size <= EXACT_BYTES:
        return Choice("flat", None, f"{told}, exact search is quick up to {EXACT_BYTES >> 20} MB")
    if size <= CODED_BYTES:
        return Choice("ivf", _factory("ivf", count, dim), f"{told}, too much for exact search to be quick")
    return Choice("ivfpq", _factory("ivfpq", count, dim), f"{told}, too much to hold them twice")


def _factory(name: str, count: int, dim: int) -> str | None:
    lists = 1 << max(0, round(math.log2(max(count, 1)) / 2) - (count < 4))  # about the square root of the count
    if name == "flat":
        return None
    if name == "hnsw":
        return "HNSW32,SQfp16"
    if name == "ivf" or (name == "ivfpq" and count < FEW):
        return f"IVF{lists},SQfp16"
    if name == "ivfpq":
        parts = next(m for m in range(max(1, dim // 4), 0, -1) if dim % m == 0)
        return f"IVF{lists},PQ{parts}x8"
    return name


def check_type(wanted: str, dim: int) -> None:
    """Raise VlmkitError unless `wanted` is a type that FAISS can make for vectors of D = `dim` numbers."""
    if wanted in NAMES:
        return
    import faiss

    try:
        faiss.index_factory(dim, wanted, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, ValueError, MemoryError):
        what = f"FAISS has no index type {wanted!r} for vectors of {dim} numbers"
        raise VlmkitError(what, f"use --type {'|'.join(NAMES)} or a string of faiss.index_factory") from None


def is_lossless(factory: str) -> bool:
    """Whether the codes hold the vectors as they are stored, so that no candidate need be drawn in reserve."""
    return factory.endswith(("Flat", "SQfp16"))
