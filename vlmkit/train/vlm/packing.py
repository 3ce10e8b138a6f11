"""Sequences packed into rows without seeing each other; several about the same pictures share one prefix.

The pictures of a group stand at its start, so their tokens are computed once for all its captions or questions. A
token sees its group's prefix and its own branch before it; positions run on from the prefix in each branch. Equal to
one row a sequence, up to rounding.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np

from vlmkit.train.vlm.tokenize import Sequence


@dataclass(frozen=True, slots=True)
class Unit:
    """What stays together in a row: tokens with their place in the tree, branch 0 being the prefix."""

    ids: np.ndarray  # (T,)
    learned: np.ndarray  # (T,)
    lengths: np.ndarray  # (T,) of the reply that a learned token stands in
    branch: np.ndarray  # (T,)
    position: np.ndarray  # (T,)
    pictures: list[int]  # which pictures its image tokens stand for, in order


@dataclass(frozen=True, slots=True)
class Rows:
    """R rows of L tokens."""

    ids: np.ndarray  # (R, L)
    position: np.ndarray  # (R, L)
    unit: np.ndarray  # (R, L), -1 at padding
    branch: np.ndarray  # (R, L)
    places: np.ndarray  # (S,) flat places (row x L + column) whose next token is learned
    labels: np.ndarray  # (S,) that next token
    lengths: np.ndarray  # (S,) float64, learned tokens of the reply that it stands in
    pictures: list[int]  # which pictures the image tokens stand for, row by row


@dataclass(frozen=True, slots=True)
class Packer:
    """Packs for a model with `image_tokens` a picture; `share` where features do not depend on the text."""

    image: int  # id of the image token
    image_tokens: int
    pad: int
    length: int  # of a row; a longer sequence gets a row of its own
    share: bool = True

    def size(self, sequence: Sequence) -> int:
        """Tokens of a sequence with all its image tokens."""
        return len(sequence.ids) + (self.image_tokens - 1) * int((sequence.ids == self.image).sum())

    def whole(self, sequence: Sequence) -> Sequence:
        """`sequence` with all its image tokens."""
        repeats = np.where(sequence.ids == self.image, self.image_tokens, 1)
        return Sequence(np.repeat(sequence.ids, repeats), np.repeat(sequence.learned, repeats))

    def pack(self, groups: Several[tuple[list[Sequence], list[int]]]) -> Rows:
        """Each group: sequences about the same pictures, and the numbers of these pictures."""
        units = [unit for sequences, pictures in groups for unit in self._units(sequences, pictures)]
        rows: list[list[Unit]] = []
        room: list[int] = []
        for unit in units:
            size = len(unit.ids)
            row = next((r for r, left in enumerate(room) if size <= left), None)
            if row is None:
                row = len(rows)
                rows.append([])
                room.append(self.length)
            rows[row].append(unit)
            room[row] -= size
        return self._rows(rows)

    def _units(self, sequences: list[Sequence], pictures: list[int]) -> Iterator[Unit]:
        taken: list[Sequence] = []
        size = 0
        for sequence in sequences:
            own = self.size(sequence)
            if taken and self.share:
                own -= self.size(sequence.start(common_prefix([taken[0], sequence])))
            if taken and (not self.share or size + own > self.length):
                yield self._unit(taken, pictures)
                taken, size, own = [], 0, self.size(sequence)
            taken.append(sequence)
            size += own
        yield self._unit(taken, pictures)

    def _unit(self, sequences: list[Sequence], pictures: list[int]) -> Unit:
        prefix = common_prefix(sequences) if len(sequences) > 1 else 0
        first = sequences[0]
        parts = [first.start(prefix), *(sequence.after(prefix) for sequence in sequences)]
        ids, learned, lengths, branch, position = [], [], [], [], []
        start = 0
        for number, part in enumerate(map(self.whole, parts)):
            size = len(part.ids)
            ids.append(part.ids)
            learned.append(part.learned)
            lengths.append(_lengths(part.learned))
            branch.append(np.full(size, number, np.int32))
            position.append(np.arange(start, start + size, dtype=np.int32))
            if number == 0:
                start = size
        in_prefix = int((parts[0].ids == self.image).sum())
        shown = pictures[:in_prefix] + [p for _ in sequences for p in pictures[in_prefix:]]
        return Unit(*map(np.concatenate, (ids, learned, lengths, branch, position)), shown)  # type: ignore[call-arg, arg-type]

    def _rows(self, rows: list[list[Unit]]) -> Rows:
        width = max(sum(len(unit.ids) for unit in row) for row in rows)
        shape = len(rows), width
        ids, position = np.full(shape, self.pad, np.int64), np.zeros(shape, np.int64)
        unit_of, branch = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
        places, labels, lengths, pictures = [], [], [], []
        for r, row in enumerate(rows):
            at = 0
            for number, unit in enumerate(row):
                here = slice(at, at + len(unit.ids))
                ids[r, here], position[r, here] = unit.ids, unit.position
                unit_of[r, here], branch[r, here] = number, unit.branch
                learned = np.flatnonzero(unit.learned)
                places.append(r * width + at + _before(unit, learned))
                labels.append(unit.ids[learned])
                lengths.append(unit.lengths[learned])
                pictures += unit.pictures
                at += len(unit.ids)
        joined = map(np.concatenate, (places, labels, lengths))
        return Rows(ids, position, unit_of, branch, *joined, pictures)  # type: ignore[call-arg, arg-type]


def _lengths(learned: np.ndarray) -> np.ndarray:
    """(T,) float64: for each token, how many stand in its run of learned or not learned ones."""
    starts = np.flatnonzero(np.diff(learned, prepend=~learned[:1]))
    runs = np.diff(starts, append=len(learned))
    return np.repeat(runs, runs).astype(np.float64)


def _before(unit: Unit, learned: np.ndarray) -> np.ndarray:
    """The token from which each learned one is foretold: the one before it; of a branch's first, the prefix's last."""
    first = (unit.branch[learned] > 0) & (unit.branch[learned - 1] != unit.branch[learned])
    return np.where(first, (unit.branch == 0).sum() - 1, learned - 1)


def common_prefix(sequences: list[Sequence]) -> int:
    """How many tokens all `sequences` begin with and do not learn."""
    first = sequences[0]
    length = min(len(sequence.ids) for sequence in sequences)
    same = ~first.learned[:length]
    for sequence in sequences[1:]:
        same &= (sequence.ids[:length] == first.ids[:length]) & ~sequence.learned[:length]
    return int(same.argmin()) if not same.all() else length
