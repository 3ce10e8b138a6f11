"""Which groups each step takes, and in which parts they go through the model.

A step takes the same groups for any number of processes, micro-batches and parts.
"""

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from vlmkit.train.vlm.groups import TokenizedGroups


class SampleRef(NamedTuple):
    """One group in one epoch, from 0; perhaps some of its samples alone."""

    group: int
    epoch: int
    start: int = 0
    stop: int | None = None
    counts: bool = True  # False in a part that only keeps step with other processes


MicroBatch = list[list[SampleRef]]  # parts, each within the bounds


class Order(Sequence[SampleRef]):
    """The first `total` groups that `epoch(0)`, `epoch(1)` and so on draw; each (N,) numbers of groups.

    An epoch is drawn when it is needed, and the last ones are kept.
    """

    def __init__(self, epoch: Callable[[int], np.ndarray], total: int) -> None:
        self.epoch, self.total = lru_cache(2)(epoch), total
        self.starts = [0]  # of the epochs so far, and where the next one starts

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self.total))]
        if not 0 <= place < self.total:
            raise IndexError(place)
        while place >= self.starts[-1]:
            self.starts.append(self.starts[-1] + len(self.epoch(len(self.starts) - 1)))
        number = bisect(self.starts, place) - 1
        return SampleRef(int(self.epoch(number)[place - self.starts[number]]), number)


class ByLength(Sequence[SampleRef]):
    """`refs` with those of each step of `step` sorted by length, for micro-batches that are padded to the longest."""

    def __init__(self, refs: Sequence[SampleRef], step: int, groups: TokenizedGroups) -> None:
        self.refs, self.step, self.groups = refs, step, groups
        self.sorted = lru_cache(2)(self._sorted)

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self.sorted(place // self.step)[place % self.step]

    def _sorted(self, number: int) -> list[SampleRef]:
        start = number * self.step
        return sorted(self.refs[start : start + self.step], key=lambda ref: max(self.groups.segments[ref.group]))


class Bounds(NamedTuple):
    """What a part may have at most: tokens with padding, and pictures; a single segment may have more."""

    tokens: int
    pictures: int

    def parts(self, refs: Sequence[SampleRef], groups: TokenizedGroups) -> MicroBatch:
        """`refs` in order in as many parts as it takes; a group is divided between its segments."""
        parts: MicroBatch = [[]]
        rows: list[int] = []  # tokens in the rows of the last part, packed as `Packer` does
        shown = 0
        for ref in refs:
            pictures, start = groups.pictures[ref.group], 0
            for tokens, samples in zip(groups.segments[ref.group], groups.sizes[ref.group], strict=True):
                more = pictures if not parts[-1] or parts[-1][-1][:2] != ref[:2] or not start else 0
                packed = _packed(rows, tokens, groups.packer.length)
                if parts[-1] and (len(packed) * max(packed) > self.tokens or shown + more > self.pictures):
                    parts.append([])
                    packed, shown, more = [tokens], 0, pictures
                rows, shown = packed, shown + more
                if parts[-1] and start and parts[-1][-1][:2] == ref[:2]:
                    parts[-1][-1] = parts[-1][-1]._replace(stop=start + samples)
                else:
                    parts[-1].append(ref._replace(start=start, stop=start + samples))
                start += samples
        return parts


def _packed(rows: list[int], tokens: int, length: int) -> list[int]:
    """The tokens in each row with one more segment, in the first row that has room."""
    place = next((row for row, filled in enumerate(rows) if filled + tokens <= length), None)
    if place is None:
        return [*rows, tokens]
    return [filled + tokens * (row == place) for row, filled in enumerate(rows)]


class OrderedSampler(Sampler[MicroBatch]):
    """The groups of a whole run in their order, in micro-batches of `batch_size`, those of process `rank`.

    `divide` makes the parts of a micro-batch; all processes get as many of them.
    """

    def __init__(
        self,
        refs: Sequence[SampleRef],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        divide: Callable[[Sequence[SampleRef]], MicroBatch] = lambda refs: [list(refs)],
    ) -> None:
        self.refs, self.batch_size, self.rank, self.world, self.divide = refs, batch_size, rank, world, divide

    def __len__(self) -> int:
        return -(-len(self.refs) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[MicroBatch]:
        for first in range(0, len(self.refs), self.batch_size * self.world):
            starts = range(first, first + self.batch_size * self.world, self.batch_size)
            divided = [self.divide(self.refs[start : start + self.batch_size]) for start in starts]
            own = divided[self.rank]
            idle = [[own[-1][-1]._replace(counts=False)]]
            yield own + idle * (max(map(len, divided)) - len(own))
