"""Refusals that the metrics share: better none than a silently wrong number."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError

if TYPE_CHECKING:
    import numpy as np


class MetricError(VlmkitError, ValueError):
    """This number cannot be told; the text says why."""


def check_variant(variant: str, known: Sequence[str]) -> None:
    if variant not in known:
        raise MetricError(f"unknown variant {variant}", f"use {', '.join(known)}")


def numbers(values: Any) -> "np.ndarray":
    """`values` as float64, at least one, all finite. Raises MetricError."""
    import numpy as np

    found = np.asarray(values, np.float64)
    if found.size == 0:
        raise MetricError("no values", "score at least one item")
    if not np.isfinite(found).all():
        raise MetricError("a value is NaN or infinite", "mend what made it")
    return found


def pair(a: Any, b: Any) -> "tuple[np.ndarray, np.ndarray]":
    """Two columns of the same length. Raises MetricError."""
    left, right = numbers(a), numbers(b)
    if left.shape != right.shape:
        raise MetricError(f"{len(left)} values against {len(right)}", "pair them item by item")
    return left, right
