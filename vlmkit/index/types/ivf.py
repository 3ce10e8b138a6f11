"""ivf, ivfpq: lists of near vectors, of which a search visits a few (Jegou et al. 2011)."""

import math

from vlmkit.index.types.faiss_index import FaissIndex

MIN_PQ_ROWS = 4096  # training codebooks on fewer would take longer than it could ever save


class Ivf(FaissIndex):
    """The vectors as float16."""

    @classmethod
    def factory(cls, name: str, count: int, dim: int) -> str:
        return f"IVF{_lists(count)},SQfp16"


class IvfPq(FaissIndex):
    """The vectors by product quantisation, a byte for four numbers."""

    @classmethod
    def factory(cls, name: str, count: int, dim: int) -> str:
        if count < MIN_PQ_ROWS:
            return Ivf.factory(name, count, dim)
        parts = next(m for m in range(max(1, dim // 4), 0, -1) if dim % m == 0)
        return f"IVF{_lists(count)},PQ{parts}x8"


def _lists(count: int) -> int:
    """About the square root of `count`, a power of two, and no more than there are vectors."""
    return 1 << max(0, round(math.log2(max(count, 1)) / 2) - (count < 4))
