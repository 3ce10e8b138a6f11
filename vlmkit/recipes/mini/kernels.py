"""How alike questions are, and pictures, for the teacher of `mini`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlmkit.io.executor import ahead
from vlmkit.io.images import open_picture
from vlmkit.io.sources import open_source
from vlmkit.models.chat.mini_graphs import Features
from vlmkit.models.embedders.mini import SIZE, Mini
from vlmkit.models.resolve import MINI_FOLDER

WORDS = 0.6  # of what makes two questions alike; the rest is the cosine of what `mini` embeds them as
COLORS = 0.2  # of what makes two pictures alike; the rest is what the tower sees
BINS = 12, 4, 4  # of hue, saturation and value

# Squares: their side as a share of the picture's shorter one, and where in what is left they lie. None: the whole.
THIRDS = 0.0, 0.5, 1.0
FRAMES: tuple[list[tuple[float, float, float] | None], ...] = (
    [None],
    [(1.0, x, x) for x in THIRDS],
    [(0.65, x, y) for x in THIRDS for y in (0.0, 1.0)],
)


class Questions:
    """How alike questions are to known ones: by their words, rare ones counting more, and by what `mini` embeds."""

    def __init__(self, known: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self._counter: Any = CountVectorizer(binary=True, token_pattern=r"\w+", dtype=np.float32)
        found = self._counter.fit_transform(known)
        self._rarity = np.sqrt(np.log(len(known) / np.asarray(found.sum(0))))
        self._mini = Mini()
        self._mean = self._mini.embed_texts(list(known)).mean(0)
        self._known = self._vectors(known)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(M, N) float32: each of `texts` with each known one; 1 is the same."""
        (words, meaning), (known_words, known_meaning) = self._vectors(texts), self._known
        return WORDS * (words @ known_words.T).toarray() + (1 - WORDS) * meaning @ known_meaning.T

    def _vectors(self, texts: Sequence[str]) -> tuple[Any, np.ndarray]:
        """Of length 1: sparse ones of the words, and (N, D)."""
        from sklearn.preprocessing import normalize

        words = normalize(self._counter.transform(texts).multiply(self._rarity).tocsr())
        return words.astype(np.float32), _unit(self._mini.embed_texts(list(texts)) - self._mean).astype(np.float32)


def picture_vectors(pictures: Sequence[str]) -> np.ndarray:
    """(N, 3 x 1280 + 192) float32 of length 1: averaged grids of the whole, of squares, of smaller ones; colours.

    Each beside its mirror image, and all less their means over the pictures.
    """
    tower = Features(MINI_FOLDER, 2)
    seen, colors = [], []
    for picture in ahead(pictures, lambda name: open_picture(open_source(name), 2 * SIZE)[0], 2, 16):
        seen.append([tower(_framed(picture, frames)).mean((0, 1)) for frames in FRAMES])
        colors.append(_colors(picture))
    parts = [((1 - COLORS) / len(FRAMES), part) for part in np.array(seen).swapaxes(0, 1)]
    parts.append((COLORS, np.array(colors)))
    return np.hstack([share**0.5 * _unit(part - part.mean(0)) for share, part in parts]).astype(np.float32)


def _framed(picture: Image.Image, frames: Sequence[tuple[float, float, float] | None]) -> np.ndarray:
    """(2 x frames, 224, 224, 3) uint8: each part of the picture, and its mirror image."""
    parts = []
    for frame in frames:
        box = (0.0, 0.0, float(picture.width), float(picture.height))
        if frame:
            side = frame[0] * min(picture.size)
            left, top = frame[1] * (picture.width - side), frame[2] * (picture.height - side)
            box = left, top, left + side, top + side
        parts.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)))
    return np.concatenate([parts, np.flip(parts, 2)])


def _colors(picture: Image.Image) -> np.ndarray:
    """The square roots of the shares of each colour, as Hellinger's distance compares them."""
    pixels = np.asarray(picture.convert("HSV").reduce(8)).reshape(-1, 3)
    counts = np.histogramdd(pixels, BINS, [(0, 256)] * 3)[0].ravel()
    return np.sqrt(counts / counts.sum())


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
