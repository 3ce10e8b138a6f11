"""How good predicted probabilities and numbers are: AUROC, calibration, F1 by class, rank correlation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BINS = 15  # of the calibration error


def average_ranks(values: "np.ndarray") -> "np.ndarray":
    """The ranks of n numbers from 1, equal ones with the mean of theirs."""
    import numpy as np

    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def auroc(scores: "np.ndarray", positive: "np.ndarray") -> float | None:
    """The chance that a positive one of n scores is above another one, ties half (Hanley and McNeil, 1982).

    None without positive ones, and without others.
    """
    hits = int(positive.sum())
    others = len(positive) - hits
    if not hits or not others:
        return None
    return float((average_ranks(scores)[positive].sum() - hits * (hits + 1) / 2) / (hits * others))


def spearman(a: "np.ndarray", b: "np.ndarray") -> float | None:
    """The correlation of the ranks of n numbers each; None where all of one are equal."""
    import numpy as np

    ranks = average_ranks(a), average_ranks(b)
    return None if min(map(np.ptp, ranks)) == 0 else float(np.corrcoef(*ranks)[0, 1])


def calibration_error(confidence: "np.ndarray", right: "np.ndarray") -> float:
    """ECE: the mean difference of n confidences (0 to 1) and the share that is right, in BINS of equal width.

    After Guo and others (2017).
    """
    import numpy as np

    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence - right, BINS)
    return float(np.abs(gaps).sum() / len(bins))


def recalls_and_f1(predicted: "np.ndarray", truth: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """Of booleans (n, L): the recall of each class, NaN where no row is of it, and its F1, 0 where nothing fits."""
    import numpy as np

    hits, said, known = (some.sum(0) for some in (predicted & truth, predicted, truth))
    recall = np.divide(hits, known, out=np.full(len(known), np.nan), where=known > 0)
    return recall, 2 * hits / np.maximum(said + known, 1)
