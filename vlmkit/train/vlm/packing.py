"""Samples packed into rows without attending to each other; several about the same pictures share one prefix.

The pictures of a group stand at its start, so their tokens are computed once for all its captions or questions. A
token attends to its segment's prefix and to its own branch before it; positions run on from the prefix in each branch.
Equal to one row a sample, up to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlmkit.train.vlm.tokenize import TokenizedSample


@dataclass(frozen=True, slots=True)
class Segment:
    """T tokens that stay together in a row; branch 0 is the prefix that the other branches share."""

    input_ids: np.ndarray  # (T,)
    loss_mask: np.ndarray  # (T,)
    reply_lengths: np.ndarray  # (T,) of the reply that a token of the loss stands in
    branch_ids: np.ndarray  # (T,)
    position_ids: np.ndarray  # (T,)
    pictures: list[int]  # which pictures its image tokens stand for, in order

    def label_positions(self, labels: np.ndarray) -> np.ndarray:
        """The position whose logits predict each label: the one before it; of a branch's first, the prefix's last."""
        first = (self.branch_ids[labels] > 0) & (self.branch_ids[labels - 1] != self.branch_ids[labels])
        return np.where(first, (self.branch_ids == 0).sum() - 1, labels - 1)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """R rows of L tokens, with S labels."""

    input_ids: np.ndarray  # (R, L)
    position_ids: np.ndarray  # (R, L)
    segment_ids: np.ndarray  # (R, L), -1 at padding
    branch_ids: np.ndarray  # (R, L)
    label_positions: np.ndarray  # (S,) flat positions (row x L + column) whose logits predict the labels
    labels: np.ndarray  # (S,)
    reply_lengths: np.ndarray  # (S,) float64, labels in the reply that each stands in
    pictures: list[int]  # which pictures the image tokens stand for, row by row


@dataclass(frozen=True, slots=True)
class Packer:
    """Packs for a model with `image_tokens` a picture; `share` where features do not depend on the text."""

    image: int  # id of the image token
    image_tokens: int
    pad: int
    length: int  # of a row; a longer sample gets a row of its own
    share: bool = True

    def size(self, sample: TokenizedSample) -> int:
        """Tokens of a sample with all its image tokens."""
        return len(sample) + (self.image_tokens - 1) * int((sample.input_ids == self.image).sum())

    def expand_image_tokens(self, sample: TokenizedSample) -> TokenizedSample:
        """`sample` with all its image tokens."""
        repeats = np.where(sample.input_ids == self.image, self.image_tokens, 1)
        return TokenizedSample(np.repeat(sample.input_ids, repeats), np.repeat(sample.loss_mask, repeats))

    def truncate(self, sample: TokenizedSample, length: int) -> TokenizedSample | None:
        """`sample` cut to `length` tokens; None if that cut a picture, or left nothing for the loss."""
        if self.size(sample) <= length:
            return sample
        images = sample.input_ids == self.image
        ends = np.cumsum(np.where(images, self.image_tokens, 1))
        kept = int((ends <= length).sum())
        if images[kept:].any() or not sample.loss_mask[:kept].any():
            return None
        return sample[:kept]

    def pack(self, groups: Sequence[tuple[list[TokenizedSample], list[int]]]) -> PackedBatch:
        """Each group: samples about the same pictures, and the numbers of these pictures."""
        rows: list[list[Segment]] = []
        room: list[int] = []
        for segment in (made for samples, pictures in groups for made in self._segments(samples, pictures)):
            size = len(segment.input_ids)
            row = next((r for r, left in enumerate(room) if size <= left), None)
            if row is None:
                row = len(rows)
                rows.append([])
                room.append(self.length)
            rows[row].append(segment)
            room[row] -= size
        return self._batch(rows)

    def sizes(self, samples: list[TokenizedSample]) -> list[tuple[int, int]]:
        """(tokens, samples) of each segment that `samples` about the same pictures become."""
        found = []
        for some in self._split(samples):
            prefix = common_prefix(some) if len(some) > 1 else 0
            tokens = self.size(some[0][:prefix]) + sum(self.size(sample[prefix:]) for sample in some)
            found.append((tokens, len(some)))
        return found

    def _segments(self, samples: list[TokenizedSample], pictures: list[int]) -> Iterator[Segment]:
        return (self._segment(some, pictures) for some in self._split(samples))

    def _split(self, samples: list[TokenizedSample]) -> Iterator[list[TokenizedSample]]:
        """The samples of each segment, in order."""
        taken: list[TokenizedSample] = []
        size = 0
        for sample in samples:
            own = self.size(sample)
            if taken and self.share:
                own -= self.size(sample[: common_prefix([taken[0], sample])])
            if taken and (not self.share or size + own > self.length):
                yield taken
                taken, size, own = [], 0, self.size(sample)
            taken.append(sample)
            size += own
        yield taken

    def _segment(self, samples: list[TokenizedSample], pictures: list[int]) -> Segment:
        prefix = common_prefix(samples) if len(samples) > 1 else 0
        shared = int((samples[0].input_ids[:prefix] == self.image).sum())
        parts = [self.expand_image_tokens(part) for part in (samples[0][:prefix], *(s[prefix:] for s in samples))]
        starts = [0, *[len(parts[0])] * len(samples)]
        counts = [int((sample.input_ids == self.image).sum()) for sample in samples]  # first turns may have fewer
        return Segment(
            np.concatenate([part.input_ids for part in parts]),
            np.concatenate([part.loss_mask for part in parts]),
            np.concatenate([_run_lengths(part.loss_mask) for part in parts]),
            np.repeat(np.arange(len(parts), dtype=np.int32), list(map(len, parts))),
            np.concatenate([np.arange(at, at + len(part)) for at, part in zip(starts, parts, strict=True)]),
            pictures[:shared] + [picture for count in counts for picture in pictures[shared:count]],
        )

    def _batch(self, rows: list[list[Segment]]) -> PackedBatch:
        width = max(sum(len(segment.input_ids) for segment in row) for row in rows)
        shape = len(rows), width
        input_ids, position_ids = np.full(shape, self.pad, np.int64), np.zeros(shape, np.int64)
        segment_ids, branch_ids = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
        positions, labels, lengths, pictures = [], [], [], []
        for r, row in enumerate(rows):
            start = 0
            for number, segment in enumerate(row):
                here = r, slice(start, start + len(segment.input_ids))
                input_ids[here], position_ids[here] = segment.input_ids, segment.position_ids
                segment_ids[here], branch_ids[here] = number, segment.branch_ids
                labelled = np.flatnonzero(segment.loss_mask)
                positions.append(r * width + start + segment.label_positions(labelled))
                labels.append(segment.input_ids[labelled])
                lengths.append(segment.reply_lengths[labelled])
                pictures += segment.pictures
                start += len(segment.input_ids)
        joined = map(np.concatenate, (positions, labels, lengths))
        return PackedBatch(input_ids, position_ids, segment_ids, branch_ids, *joined, pictures)  # type: ignore[call-arg, arg-type]


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    """(T,) float64: for each token, the length of its run of equal values in `mask` (T,)."""
    starts = np.flatnonzero(np.diff(mask, prepend=~mask[:1]))
    runs = np.diff(starts, append=len(mask))
    return np.repeat(runs, runs).astype(np.float64)


def common_prefix(samples: list[TokenizedSample]) -> int:
    """How many tokens all `samples` begin with that the loss is not of."""
    first = samples[0]
    length = min(map(len, samples))
    same = ~first.loss_mask[:length]
    for sample in samples[1:]:
        same &= (sample.input_ids[:length] == first.input_ids[:length]) & ~sample.loss_mask[:length]
    return int(same.argmin()) if not same.all() else length
