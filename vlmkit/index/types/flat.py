"""flat: exact search over the float16 vectors as they lie in the file."""

from typing import TYPE_CHECKING

import numpy as np

from vlmkit.index.types.faiss_index import FaissIndex, Found

if TYPE_CHECKING:
    import faiss
FEW_QUERIES = 8  # for more, unpacking the vectors once and multiplying matrices is quicker
CHUNK = 16_384
FEW_NUMBERS = 2_000_000  # in the vectors: numpy is as quick, and FAISS takes 80 ms to be imported


class Flat(FaissIndex):
    @classmethod
    def factory(cls, name: str, count: int, dim: int) -> None:
        return None


def search(vectors: np.ndarray, queries: np.ndarray, k: int, live: np.ndarray | None = None) -> Found:
    """The k best rows of `vectors` (S x D float16) for each of the queries (N x D float32) by inner product.

    `live` are S booleans, which rows count; at least k do.
    """
    if vectors.size <= FEW_NUMBERS and len(queries) <= FEW_QUERIES:
        return _by_numpy(vectors, queries, k, np.arange(len(vectors)) if live is None else np.flatnonzero(live))
    import faiss

    if len(queries) > FEW_QUERIES:
        return search_rows(vectors, queries, k, np.arange(len(vectors)) if live is None else np.flatnonzero(live))
    if live is None:
        return _view(vectors).search(queries, k)
    bits = np.packbits(live, bitorder="little")
    keep = faiss.IDSelectorBitmap(len(vectors), faiss.swig_ptr(bits))
    return _view(vectors).search(queries, k, params=faiss.SearchParameters(sel=keep))


def search_rows(vectors: np.ndarray, queries: np.ndarray, k: int, slots: np.ndarray) -> Found:
    """The same in the given rows alone (sorted int64, at least k of them), in bounded memory."""
    if len(slots) * vectors.shape[1] <= FEW_NUMBERS and len(queries) <= FEW_QUERIES:
        return _by_numpy(vectors, queries, k, slots)
    import faiss

    scores = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(slots), CHUNK):
        part = slots[start : start + CHUNK]
        is_dense = part[-1] - part[0] + 1 == len(part)  # then a slice does, without a copy
        rows = vectors[part[0] : part[-1] + 1] if is_dense else vectors[part]
        near, columns = faiss.knn(queries, rows.astype(np.float32), min(k, len(part)), faiss.METRIC_INNER_PRODUCT)
        scores, found = best(np.hstack([scores, near]), np.hstack([found, part[columns]]), k)
    return scores, found


def _by_numpy(vectors: np.ndarray, queries: np.ndarray, k: int, slots: np.ndarray) -> Found:
    rows = vectors if len(slots) == len(vectors) else vectors[slots]
    scores = queries @ rows.astype(np.float32).T
    if k < len(slots):
        least = np.partition(scores, -k, axis=1)[:, -k, None]  # equals of the last one stay
        kept = np.flatnonzero((scores >= least).any(0))
        scores, slots = scores[:, kept], slots[kept]
    return best(scores, np.broadcast_to(slots, scores.shape), k)


def best(scores: np.ndarray, slots: np.ndarray, k: int) -> Found:
    """The k best columns of each row, best first; among equals the lower slot."""
    order = np.lexsort((slots, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(slots, order, 1)


def _view(vectors: np.ndarray) -> "faiss.IndexScalarQuantizer":
    """FAISS's exact float16 inner-product index over the mapped vectors, without a copy."""
    import faiss

    flat = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    codes = flat.codes
    codes.is_owned = False
    codes.view_data = codes.c_ptr = faiss.swig_ptr(vectors.view("u1").reshape(-1))
    codes.view_size = codes.c_size = vectors.nbytes
    flat.ntotal = len(vectors)
    flat.referenced_objects = [vectors]  # the map must live as long as FAISS reads it
    return flat
