"""Retrieval: the ranks of the right items among all."""

from typing import TYPE_CHECKING

from vlmkit.metrics.stats import MetricError, finite

if TYPE_CHECKING:
    import numpy as np

NEAR = 1e-6  # cosines in float32 that differ by less are tied
QUERIES_AT_ONCE = 1024


def recall_at_k(similarity: "np.ndarray", positives: "np.ndarray", k: int) -> float:
    """The share of queries with a positive among the k best, 0 to 1. Rows are queries; `positives` boolean, same shape.

    Ties count against the model: a negative as similar as the best positive ranks before it. Raises MetricError for
    a k above the number of columns, NaN, and a query without positives.
    """
    import numpy as np

    scores, right = finite(similarity), np.asarray(positives, bool)
    if scores.ndim != 2 or scores.shape != right.shape:
        raise MetricError(f"shapes {scores.shape} and {right.shape}", "give two matrices of one shape")
    check_k(k, scores.shape[1])
    if not right.any(axis=1).all():
        raise MetricError("a query has no positive", "leave it out")
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)  # (queries, 1)
    return float((((scores >= best) & ~right).sum(axis=1) < k).mean())


def check_k(k: int, candidates: int) -> None:
    """Raise MetricError where the k best of fewer than k are asked for: recall would be 1 for every model."""
    if not 1 <= k <= candidates:
        raise MetricError(f"k = {k} of {candidates} candidates", f"use a k from 1 to {candidates}")


def ranks(
    queries: "np.ndarray", candidates: "np.ndarray", query_groups: "np.ndarray", candidate_groups: "np.ndarray"
) -> "tuple[np.ndarray, np.ndarray]":
    """For each query the 0-based rank of its best positive, ties counted against it, and whether it was tied.

    `queries` is Q x D, `candidates` C x D, both of unit length; a candidate is right for the queries of its group.
    """
    import numpy as np

    rank, tied = np.empty(len(queries), np.int64), np.empty(len(queries), bool)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        cosines = queries[part] @ candidates.T  # (queries, C)
        right = candidate_groups[None, :] == query_groups[part, None]
        best = np.where(right, cosines, -np.inf).max(axis=1, keepdims=True)
        ahead = (cosines >= best - NEAR) & ~right
        rank[part] = ahead.sum(axis=1)
        tied[part] = (ahead & (cosines <= best + NEAR)).any(axis=1)
    return rank, tied
