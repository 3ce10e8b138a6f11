"""How far a score stands out from a reference distribution: how well everyday texts match the same picture.

`relative` is the z-score of a hit's cosine among the cosines of the same picture with 153 everyday texts (with pictures
of the index, where the query has no words). Unlike the z-score over the index it works in a small one, and unlike a
cosine it counts in standard deviations, whatever the model's scale. tests/benchmarks/relative.py measures how well each
shows that the index holds nothing like the query.

People get a word for it. Where no picture shows what is asked for, their z-scores are about those of independent draws
from a normal distribution (held against three sets of pictures in tests/benchmarks/RESULTS.md): `chance` is then the
probability that the best of all pictures gets that far, so one scale fits indexes of any size (Šidák 1967).
"""

import contextlib
import math
import zlib
from functools import cache

import numpy as np

from vlmkit.index import VectorIndex
from vlmkit.io.files import atomic_write, user_folder
from vlmkit.io.records import fingerprint_of
from vlmkit.models.types import Embedder

PICTURES = 256  # of the index
MATCHES = {"strong": 0.01, "good": 0.1}  # the highest chance of each; all else is weak
NOISE = 0.5  # a best hit of a higher chance is what is expected of pictures without anything like the query
FORMS = ("{}", "a {}", "a photo of a {}")  # as people write queries


@cache
def reference_texts() -> list[str]:
    """The everyday texts."""
    from importlib.resources import files

    words = files("vlmkit.search").joinpath("reference_texts.txt").read_text().split("\n")
    return [FORMS[i % len(FORMS)].format(word) for i, word in enumerate(filter(None, words))]


def text_vectors(model: Embedder) -> np.ndarray:
    """The vectors of the everyday texts (G x D float32), remembered in the cache folder for each model."""
    version = zlib.crc32("\n".join(reference_texts()).encode())
    path = user_folder("cache") / f"reference-{fingerprint_of(model.identity)}-{version:08x}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged: it is only a cache
        known = np.load(path, allow_pickle=False)
        if known.shape == (len(reference_texts()), model.dim) and np.isfinite(known).all():
            return known.astype(np.float32)
    found = model.embed_texts(reference_texts())
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, durable=False) as file:
            np.save(file, found)
    return found


def picture_vectors(index: VectorIndex) -> np.ndarray:
    """Vectors of up to 256 records of the index (G x D float32)."""
    return index.sample(PICTURES)


def z_score(score: float, vector: np.ndarray, reference: np.ndarray) -> float:
    """By how many standard deviations `score` exceeds the cosines of `vector` (D) with `reference` (G x D)."""
    cosines = reference @ vector
    deviation = float(cosines.std())
    return (score - float(cosines.mean())) / deviation if deviation > 1e-6 else 0.0


def chance(score: float, count: int) -> float:
    """How likely the best of `count` pictures gets this z-score where none of them shows what is asked for."""
    above = min(math.erfc(score / math.sqrt(2)) / 2, 1 - 1e-12)
    return -math.expm1(count * math.log1p(-above))


def match_of(score: float, count: int) -> str:
    """How good a match a hit with this z-score among `count` pictures is: strong, good or weak."""
    return next((name for name, most in MATCHES.items() if chance(score, count) <= most), "weak")
