"""Which pictures, views and captions make each batch: a pure function of seed and epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Batch:
    """B different pictures, and C captions of each."""

    pictures: np.ndarray  # (B,) which samples
    views: np.ndarray  # (B,) which cached view of each
    captions: np.ndarray  # (C, B) which caption of each


def batches(counts: Sequence[int], size: int, views: int, captions: int, seed: int, epoch: int) -> Iterator[Batch]:
    """The batches of one epoch: each picture once, with `captions` of its own (repeated where it has fewer).

    `counts[i]` is the number of captions of picture i. A picture stands at most once in a batch, so no caption of it is
    ever taken for a negative. The last batch may be smaller; a last batch of one is left out, it has no negatives.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(counts))
    view = rng.integers(views, size=len(counts))
    chosen = np.stack([np.resize(rng.permutation(n), captions) for n in counts], axis=1)  # (C, N)
    for start in range(0, len(order), size):
        pictures = order[start : start + size]
        if len(pictures) > 1:
            yield Batch(pictures, view[pictures], chosen[:, pictures])


def batches_per_epoch(pictures: int, size: int) -> int:
    """How many batches `batches` makes."""
    whole, rest = divmod(pictures, size)
    return whole + (rest > 1)
