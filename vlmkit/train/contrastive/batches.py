"""Which pictures, views and captions make each batch: a pure function of seed and epoch."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class Batch:
    """B different pictures, and C captions of each."""

    pictures: np.ndarray  # (B,) which samples
    views: np.ndarray  # (B,) which view of each
    captions: np.ndarray  # (C, B) which caption of each
    epoch: int = 1
    step: int = 0  # that it makes, from 1

    def parts(self, count: int) -> list["Batch"]:
        """`count` batches of equal size, give or take one picture; fewer where there are fewer pictures."""
        ends = np.linspace(0, len(self.pictures), min(count, len(self.pictures)) + 1).astype(int)
        return [
            replace(self, pictures=self.pictures[a:b], views=self.views[a:b], captions=self.captions[:, a:b])
            for a, b in pairwise(ends)
        ]


def batches(
    counts: Sequence[int],
    size: int,
    views: int,
    captions: int,
    seed: int,
    epoch: int,
    times: np.ndarray | None = None,
    least: int = 2,
) -> Iterator[Batch]:
    """The batches of one epoch: picture i, of `counts[i]` captions, `times[i]` times (once unless told).

    `captions` of them each time, repeated where it has fewer. A picture stands at most once in a batch, so no caption
    of it is ever taken for a negative: its next turn waits for the next batch. Batches of fewer than `least` pictures,
    which the last ones may be, are left out: one picture alone has no negatives.
    """
    rng = np.random.default_rng([seed, epoch])
    drawn = np.repeat(np.arange(len(counts)), 1 if times is None else times)  # (D,)
    order = rng.permutation(len(drawn))
    view = rng.integers(views, size=len(drawn))
    chosen = [np.resize(rng.permutation(counts[int(i)]), captions) for i in drawn]
    for some in _without_repeats(order, drawn, size):
        if len(some) >= least:
            yield Batch(drawn[some], view[some], np.stack([chosen[i] for i in some], axis=1), epoch)


def _without_repeats(order: np.ndarray, drawn: np.ndarray, size: int) -> Iterator[np.ndarray]:
    rest = deque(order.tolist())
    while rest:
        some: list[int] = []
        later: list[int] = []
        here: set[int] = set()
        while rest and len(some) < size:
            place = rest.popleft()
            (later if drawn[place] in here else some).append(place)
            here.add(int(drawn[place]))
        rest.extendleft(reversed(later))
        yield np.array(some)
