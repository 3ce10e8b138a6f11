"""Retrieval: where the right items stand among all."""

from typing import TYPE_CHECKING

from vlmkit.metrics.stats import MetricError, numbers

if TYPE_CHECKING:
    import numpy as np


def recall_at_k(similarity: "np.ndarray", positives: "np.ndarray", k: int) -> float:
    """The share of queries with a positive among the k best. Rows are queries; `positives` boolean, same shape.

    Ties count against the model: a negative as similar as the best positive stands before it. Raises MetricError for
    a k above the number of columns, NaN, and a query without positives.
    """
    import numpy as np

    scores, right = numbers(similarity), np.asarray(positives, bool)
    if scores.ndim != 2 or scores.shape != right.shape:
        raise MetricError(f"shapes {scores.shape} and {right.shape}", "give two matrices of one shape")
    check_k(k, scores.shape[1])
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)  # (queries, 1)
    if np.isinf(best).any():
        raise MetricError("a query has no positive", "leave it out")
    return float((((scores >= best) & ~right).sum(axis=1) < k).mean())


def check_k(k: int, candidates: int) -> None:
    """Raise MetricError where the k best of fewer than k would be asked for: recall would be 1 for every model."""
    if not 1 <= k <= candidates:
        raise MetricError(f"k = {k} of {candidates} candidates", f"use a k from 1 to {candidates}")
