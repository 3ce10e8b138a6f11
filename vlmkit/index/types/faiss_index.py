"""FaissIndex: an approximate index that FAISS makes from a factory string; the base class of the named types."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    import faiss
Found = tuple[np.ndarray, np.ndarray]  # scores N x k float32, best first; slots N x k int64

SEARCH_EFFORTS = ("nprobe", "efSearch")  # FAISS's parameters that make a search more thorough: of IVF, of HNSW
MAX_EFFORT = 4096
BY_QUERIES, BY_LISTS = 0, 1  # how FAISS shares a search of IVF out among the cores
TRAIN_ROWS = 65_536
ROWS_A_LIST = 64  # of an IVF, at least
CODEWORDS = 256  # of product quantisation with 8 bits, which wants more rows than that to be done soon
ADD_ROWS = 16_384
SEED = 0


class FaissIndex:
    """FAISS's index over the slots 0 to `count`, by inner product.

    `is_lossless`: the codes hold the vectors exactly as stored, so that no extra candidates are needed.
    `gives_cosines`: scores are the cosines to the stored vectors.
    """

    def __init__(self, index: "faiss.Index", factory: str) -> None:
        import faiss

        self._index = index
        self._ivf = faiss.try_extract_index_ivf(index)
        self._effort_parameter = next((name for name in SEARCH_EFFORTS if _has_parameter(index, name)), None)
        self.is_lossless = factory.endswith(("Flat", "SQfp16"))
        codes = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
        sq = getattr(codes, "sq", None)
        self.gives_cosines = sq is not None and sq.qtype == sq.QT_fp16 and not getattr(codes, "by_residual", False)

    @classmethod
    def factory(cls, name: str, count: int, dim: int) -> str | None:
        """FAISS's factory string for `count` vectors of D = `dim` numbers; None where nothing is to be built."""
        return name

    @classmethod
    def build(cls, factory: str, vectors: np.ndarray) -> Self:
        """Train and fill the index over `vectors` (S x D float16). Raises RuntimeError and MemoryError, as FAISS."""
        import faiss

        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if isinstance(index, faiss.IndexIVFScalarQuantizer) and index.sq.qtype == index.sq.QT_fp16:
            index.by_residual = False  # so that the codes are the stored numbers
        _train(index, vectors)
        for start in range(0, len(vectors), ADD_ROWS):
            rows = vectors[start : start + ADD_ROWS].astype(np.float32)
            if isinstance(index, faiss.IndexIDMap):
                index.add_with_ids(rows, np.arange(start, start + len(rows)))
            else:
                index.add(rows)
        return cls(index, factory)

    @classmethod
    def read(cls, path: str, factory: str) -> Self:
        """Open a file that `write` made, mapped: it takes the same time at any size. Raises RuntimeError."""
        import faiss

        return cls(faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC), factory)

    def write(self, path: Path) -> None:
        """Raises RuntimeError where the disk is full."""
        import faiss

        faiss.write_index(self._index, str(path))

    @property
    def count(self) -> int:
        return self._index.ntotal

    @property
    def dim(self) -> int:
        return self._index.d

    @property
    def search_efforts(self) -> Sequence[int]:
        """The values to try for `set_search_effort`, ascending; only 0 where there is nothing to set."""
        return [2**i for i in range(4, MAX_EFFORT.bit_length())] if self._effort_parameter else [0]

    def set_search_effort(self, search_effort: int) -> None:
        """Set nprobe or efSearch; 0 leaves FAISS's default."""
        import faiss

        if search_effort and self._effort_parameter:
            faiss.ParameterSpace().set_index_parameter(self._index, self._effort_parameter, search_effort)

    def search(self, queries: np.ndarray, count: int) -> Found:
        """The `count` nearest slots of each query (N x D float32), -1 where fewer are found.

        All cores search for a single query where the result stays deterministic: of equal scores at the end FAISS
        keeps those of the core that finishes first.
        """
        if self._ivf is not None and len(queries) == 1:
            self._ivf.parallel_mode = BY_LISTS
            scores, slots = self._index.search(queries, count + 1)
            self._ivf.parallel_mode = BY_QUERIES
            if scores[0, -2] > scores[0, -1]:
                return scores[:, :-1], slots[:, :-1]
        return self._index.search(queries, count)


def _has_parameter(index: "faiss.Index", name: str) -> bool:
    import faiss

    try:
        faiss.ParameterSpace().set_index_parameter(index, name, 1)
    except RuntimeError:
        return False
    return True


def _train(index: "faiss.Index", vectors: np.ndarray) -> None:
    import faiss

    ivf = faiss.try_extract_index_ivf(index)
    for part in (index, ivf, getattr(ivf, "pq", None), getattr(index, "pq", None)):
        if part is not None and hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1  # fewer only make FAISS print warnings
    count = min(len(vectors), max(TRAIN_ROWS, ROWS_A_LIST * (ivf.nlist if ivf else 0)))
    picked = np.sort(np.random.default_rng(SEED).choice(len(vectors), count, replace=False))
    rows = vectors[picked].astype(np.float32)
    index.train(rows if len(rows) >= CODEWORDS else np.resize(rows, (4 * CODEWORDS, rows.shape[1])))
