"""How alike two pictures are, pixel by pixel: sameness of the picture, where an embedding knows likeness of meaning.

The score of a pair is 1 less the root mean square difference of their brightness in the window, an eighth of a side
wide, where they differ most, as a share of the whole range. So a scan saved again, a smaller, grey, turned or mirrored
copy stays above 0.95, and two letters that differ in one line do not reach it. Pairs are found by a signature of low
frequencies (Zauner 2010) that is the same for all turns and mirror images; its distance is a lower bound, so no pair is
missed.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vlmkit.io.executor import ahead
from vlmkit.io.images import open_picture
from vlmkit.io.sources import PictureError, open_source
from vlmkit.search.neighbours import all_blocks, blocking

SIDE = 192  # pixels of the pictures that are compared
COARSE = 32  # pixels of those that all are compared by
LOW = 16  # frequencies each way in a signature
CELLS = 8  # each way, in which colours are compared
WINDOW = 8  # of these are one side
KEPT = 2000  # pictures, of 75 KB each
LOW_CONTRAST = 24.0  # standard deviation of brightness under which differences count more
LEAST_CONTRAST = 3.0
GREY = 6.0  # mean distance of colours from grey up to which a picture has none
SLACK = 1.1  # of the lower bound: scaling to another size is not exact
BLOCK = 1024, 8192  # rows compared at a time
PAIRS = 4096  # compared at a time


class Thumbnail(NamedTuple):
    """A picture as it is compared: brightness SIDE x SIDE (uint8), colours CELLS x CELLS x 2 (float32), None for a grey
    one, and its width and height in pixels.
    """

    luma: np.ndarray
    chroma: np.ndarray | None
    size: tuple[int, int]


def open_thumbnail(path: str) -> Thumbnail | None:
    """The thumbnail of the picture at `path`; None where it cannot be read."""
    from PIL.Image import Resampling

    try:
        image, width, height = open_picture(open_source(path), SIDE)
    except PictureError:
        return None
    small = image.convert("YCbCr").resize((SIDE, SIDE), Resampling.BICUBIC, reducing_gap=3.0)
    pixels = np.asarray(small)
    chroma = _shrink(pixels[..., 1:].astype(np.float32), CELLS) - 128
    return Thumbnail(pixels[..., 0], chroma if np.abs(chroma).mean() > GREY else None, (width, height))


class Likeness:
    """Scores of pairs of pictures, which are rows; rows without a picture that can be read have none."""

    def __init__(self, paths: Sequence[str | None], threshold: float, workers: int) -> None:
        self._paths = paths
        self._open = lru_cache(KEPT)(open_thumbnail)
        self.rows = np.zeros(len(paths), bool)  # that have a picture
        self._coarse = np.zeros((len(paths), COARSE, COARSE), np.uint8)
        named = [(row, path) for row, path in enumerate(paths) if path is not None]
        opened = ahead(named, lambda entry: self._open(entry[1]), workers, 4 * workers)
        for (row, _), found in zip(named, opened, strict=True):
            if found is not None:
                self.rows[row] = True
                self._coarse[row] = np.rint(_shrink(found.luma[..., None].astype(np.float32), COARSE)[..., 0])
        self.scores = dict(self._scored(threshold))

    def _scored(self, threshold: float) -> Iterator[tuple[tuple[int, int], float]]:
        for a, b, turns in self._candidates(255 * (1 - threshold)):
            one, other = self._open(str(self._paths[a])), self._open(str(self._paths[b]))
            if one is not None and other is not None:
                score = max(compare(one, other, turn) for turn in turns)
                if score >= threshold:
                    yield (a, b), score

    def _candidates(self, difference: float) -> Iterator[tuple[int, int, list[int]]]:
        """Rows a < b that may differ by no more than this, with the turns of b for which that holds."""
        limit = SLACK * (difference + 1) * COARSE  # of the distance of all pixels
        rows = np.flatnonzero(self.rows)
        signatures = _signatures(self._coarse[rows])
        squares = np.einsum("nd,nd->n", signatures, signatures)
        cells = blocking(signatures, limit)
        is_complete = cells is not None and cells.is_complete
        blocks = cells.blocks(signatures, *BLOCK) if cells and is_complete else all_blocks(len(rows), *BLOCK)
        for left, right in blocks:
            distances = squares[left, None] + squares[None, right] - 2 * signatures[left] @ signatures[right].T
            i, j = np.divmod(np.flatnonzero(distances <= limit**2), len(right))
            a, b = np.minimum(left[i], right[j]), np.maximum(left[i], right[j])
            a, b = a[a < b], b[a < b]
            for start in range(0, len(a), PAIRS):
                yield from self._near(rows[a[start : start + PAIRS]], rows[b[start : start + PAIRS]], limit)

    def _near(self, ours: np.ndarray, theirs: np.ndarray, limit: float) -> Iterator[tuple[int, int, list[int]]]:
        left, right = self._coarse[ours].astype(np.float32), self._coarse[theirs].astype(np.float32)
        near = np.stack([np.square(left - turned(right, turn)).sum((1, 2)) <= limit**2 for turn in range(8)], 1)
        for pair in np.flatnonzero(near.any(1)):
            yield int(ours[pair]), int(theirs[pair]), np.flatnonzero(near[pair]).tolist()

    def lowest(self, some: Sequence[int], others: Sequence[int]) -> float:
        """The lowest score of a row of `some` with one of `others`; -1 for one under the threshold."""
        pairs = ((min(a, b), max(a, b)) for a in some for b in others if a != b)
        return min((self.scores.get(pair, -1.0) for pair in pairs), default=1.0)


def turned(pictures: np.ndarray, turn: int) -> np.ndarray:
    """Square pictures (N x S x S) in one of their eight orientations; 0 is as they are."""
    if turn & 1:
        pictures = pictures.swapaxes(1, 2)
    if turn & 2:
        pictures = pictures[:, ::-1]
    return pictures[:, :, ::-1] if turn & 4 else pictures


def compare(one: Thumbnail, other: Thumbnail, turn: int = 0) -> float:
    """The score of two pictures, 0 to 1; `other` in one of its orientations. Pictures of other proportions have 0."""
    large, small = sorted((one.size, other.size[::-1] if turn & 1 else other.size), reverse=True)
    if abs(large[0] * small[1] - large[1] * small[0]) > sum(large):  # a pixel each way is rounding
        return 0.0
    side = max(min(SIDE, *small), WINDOW)
    left, right = _scaled(one.luma, side), turned(_scaled(other.luma, side)[None], turn)[0]
    worst = _worst_window(np.square(left - right)) ** 0.5
    worst *= max(1.0, LOW_CONTRAST / max(LEAST_CONTRAST, min(left.std(), right.std())))
    if one.chroma is not None and other.chroma is not None:
        theirs = turned(np.moveaxis(other.chroma, 2, 0), turn)
        worst = max(worst, float(np.square(np.moveaxis(one.chroma, 2, 0) - theirs).mean(0).max()) ** 0.5)
    return float(max(0.0, 1 - worst / 255))


def _worst_window(squares: np.ndarray) -> float:
    """The highest mean of `squares` (S x S) in windows of an eighth of a side that overlap by half."""
    width = len(squares) // WINDOW
    sums = np.pad(squares.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    starts = np.unique([*range(0, len(squares) - width, max(1, width // 2)), len(squares) - width])
    low, high = starts, starts + width
    found = sums[np.ix_(high, high)] - sums[np.ix_(low, high)] - sums[np.ix_(high, low)] + sums[np.ix_(low, low)]
    return max(0.0, float(found.max())) / width**2


def _scaled(luma: np.ndarray, side: int) -> np.ndarray:
    """SIDE x SIDE uint8 -> side x side float32."""
    from PIL import Image

    if side == len(luma):
        return luma.astype(np.float32)
    return np.asarray(Image.fromarray(luma).resize((side, side), Image.Resampling.BICUBIC), np.float32)


def _shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """SIDE x SIDE x C -> side x side x C, means."""
    step = SIDE // side
    return pixels.reshape(side, step, side, step, -1).mean((1, 3))


def _signatures(coarse: np.ndarray) -> np.ndarray:
    """N x COARSE x COARSE -> N x LOW * LOW float32. Their distances are no larger than those of the pictures, turned.

    The absolute values of the low frequencies of an orthonormal cosine transform do not change by mirroring; a quarter
    turn swaps two of them, which are sorted.
    """
    n, k = np.arange(COARSE), np.arange(LOW)
    basis = np.sqrt(2 / COARSE) * np.cos(np.pi * (2 * n[None] + 1) * k[:, None] / (2 * COARSE))
    basis[0] /= 2**0.5
    basis = basis.astype(np.float32)
    found = np.empty((len(coarse), LOW * LOW), np.float32)
    for start in range(0, len(coarse), PAIRS):
        low = np.abs(basis @ coarse[start : start + PAIRS].astype(np.float32) @ basis.T)
        swapped = low.swapaxes(1, 2)
        upper = np.triu(np.ones((LOW, LOW), bool))
        low = np.where(upper, np.maximum(low, swapped), np.minimum(low, swapped))
        found[start : start + PAIRS] = low.reshape(len(low), -1)
    return found
