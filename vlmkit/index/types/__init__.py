"""The types of index by name, and which one suits which size.

A type is one class in one file and one line in TYPES, with the methods of `FaissIndex`. Any other name is taken for
FAISS's factory string. Exact search (flat) reads every vector and needs no building: 512 MB (1,000,000 x 256) take a
third of the time of FAISS's flat index (tests/benchmarks/RESULTS.md), so half of that is where it is still quick.
Above, IVF with float16 codes is near exact, and costs the vectors' size again on the disk and, for what queries visit,
in memory. From 4 GB on, product quantisation (Jegou et al. 2011) with a byte for four numbers makes that an eighth.
"""

from typing import NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.index.types.faiss_index import FaissIndex
from vlmkit.io.registry import Registry

TYPES = Registry(
    "vlmkit.index_types",
    {
        "flat": "vlmkit.index.types.flat:Flat",
        "hnsw": "vlmkit.index.types.hnsw:Hnsw",
        "ivf": "vlmkit.index.types.ivf:Ivf",
        "ivfpq": "vlmkit.index.types.ivf:IvfPq",
    },
)
FLAT_BYTES = 256 << 20
IVF_BYTES = 4 << 30


class Choice(NamedTuple):
    """A type, FAISS's factory string for it (None: exact search), and why it was taken."""

    type: str
    factory: str | None
    reason: str


def load_type(name: str) -> type[FaissIndex]:
    """The class of a type; of a factory string it is FaissIndex itself."""
    return TYPES.load(name) if name in TYPES else FaissIndex


def choose(wanted: str, count: int, dim: int) -> Choice:
    """The type for `count` vectors of D = `dim` numbers, where `wanted` was asked for."""
    name, reason = wanted, f"{wanted} was asked for"
    if wanted == "auto":
        size = 2 * dim * count
        if size <= FLAT_BYTES:
            name, why = "flat", f"exact search is quick up to {FLAT_BYTES >> 20} MB"
        elif size <= IVF_BYTES:
            name, why = "ivf", "too much for exact search to be quick"
        else:
            name, why = "ivfpq", "too much to hold them twice"
        reason = f"auto: {count} vectors take {size / (1 << 20):.1f} MB, {why}"
    return Choice(name, load_type(name).factory(name, count, dim), reason)


def check_type(wanted: str, dim: int) -> None:
    """Raise VlmkitError unless `wanted` is a type that FAISS can make for vectors of D = `dim` numbers."""
    if wanted == "auto" or wanted in TYPES:
        return
    import faiss

    try:
        faiss.index_factory(dim, wanted, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, ValueError, MemoryError):
        what = f"FAISS has no index type {wanted!r} for vectors of {dim} numbers"
        raise VlmkitError(what, f"use --type auto|{'|'.join(TYPES)} or a string of faiss.index_factory") from None
