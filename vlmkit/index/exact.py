"""Exact search: FAISS over the float16 vectors as they lie in the file."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import faiss
    import numpy as np

FEW = 8  # queries; for more, unpacking the vectors once and multiplying matrices is quicker
CHUNK = 16_384

Found = tuple["np.ndarray", "np.ndarray"]  # scores N x k float32, best first; slots N x k int64


def search(vectors: "np.ndarray", queries: "np.ndarray", k: int, live: "np.ndarray | None" = None) -> Found:
    """The k best rows of `vectors` (S x D float16) for each of the queries (N x D float32) by inner product.

    `live` are S booleans, which rows count; at least k do.
    """
    import faiss
    import numpy as np

    if len(queries) > FEW:
        return among(vectors, queries, k, np.arange(len(vectors)) if live is None else np.flatnonzero(live))
    if live is None:
        return _view(vectors).search(queries, k)
    bits = np.packbits(live, bitorder="little")
    keep = faiss.IDSelectorBitmap(len(vectors), faiss.swig_ptr(bits))
    return _view(vectors).search(queries, k, params=faiss.SearchParameters(sel=keep))


def among(vectors: "np.ndarray", queries: "np.ndarray", k: int, slots: "np.ndarray") -> Found:
    """The same in the given rows alone (sorted int64, at least k of them), in bounded memory."""
    import faiss
    import numpy as np

    scores = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(slots), CHUNK):
        part = slots[start : start + CHUNK]
        dense = part[-1] - part[0] + 1 == len(part)  # then a slice does, without a copy
        rows = vectors[part[0] : part[-1] + 1] if dense else vectors[part]
        near, places = faiss.knn(queries, rows.astype(np.float32), min(k, len(part)), faiss.METRIC_INNER_PRODUCT)
        scores, found = best(np.hstack([scores, near]), np.hstack([found, part[places]]), k)
    return scores, found


def best(scores: "np.ndarray", slots: "np.ndarray", k: int) -> Found:
    """The k best columns of each row, best first; among equals the lower slot."""
    import numpy as np

    order = np.lexsort((slots, -scores))[:, :k]
    rows = np.arange(len(order))[:, None]
    return scores[rows, order], slots[rows, order]


def _view(vectors: "np.ndarray") -> "faiss.IndexScalarQuantizer":
    """FAISS's exact float16 inner-product index over the mapped vectors, without a copy."""
    import faiss

    flat = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    start = faiss.swig_ptr(vectors.view("u1").reshape(-1))
    codes = flat.codes
    codes.is_owned = False
    codes.view_data = codes.c_ptr = start
    codes.view_size = codes.c_size = vectors.nbytes
    flat.ntotal = len(vectors)
    flat.referenced_objects = [vectors]  # the map must live as long as FAISS reads it
    return flat
