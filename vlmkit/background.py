"""The background of a score: how well anything matches that picture. A hit is a find where it stands out from it.

`relative` is the standard score of a hit's cosine among the cosines of the same picture with 153 everyday texts (with
pictures of the index, where the query has no words). Unlike the standard score over the index it works in a small one,
and unlike a cosine it counts in standard deviations, whatever the model's scale. tests/benchmarks/relative.py measures
how well each tells that there is nothing like the query.
"""

import contextlib
import os
import zlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from vlmkit.index import Index
from vlmkit.models import Model, cache_folder, digits_of

if TYPE_CHECKING:
    import numpy as np

PICTURES = 256  # of the index, evenly spaced
FORMS = ("{}", "a {}", "a photo of a {}")  # as people write queries


@cache
def texts() -> list[str]:
    """The everyday texts."""
    words = files("vlmkit").joinpath("background.txt").read_text().split("\n")
    return [FORMS[i % len(FORMS)].format(word) for i, word in enumerate(filter(None, words))]


def of_texts(model: Model) -> "np.ndarray":
    """The vectors of the everyday texts (G x D float32), remembered in the cache folder for each model."""
    import numpy as np

    mark = zlib.crc32("\n".join(texts()).encode())
    memory = cache_folder() / f"background-{digits_of(model.identity)}-{mark:08x}.npy"
    shape = (len(texts()), model.embedder.dim)
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or not whole: it is only a cache
        known = np.load(memory, allow_pickle=False)
        if known.shape == shape and np.isfinite(known).all():
            return known.astype(np.float32)
    found = model.embedder.embed_texts(texts())
    temporary = memory.with_suffix(f".{os.getpid()}.npy")
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary, found)
        temporary.replace(memory)
    return found


def of_pictures(index: Index) -> "np.ndarray":
    """Vectors of up to 256 records of the index, evenly spaced (G x D float32)."""
    import numpy as np

    live = index.live()
    some = live[np.linspace(0, len(live) - 1, min(len(live), PICTURES)).astype(np.int64)]
    return index.vectors[some].astype(np.float32)


def relative(score: float, vector: "np.ndarray", background: "np.ndarray") -> float:
    """By how many standard deviations `score` exceeds the cosines of `vector` (D) with `background` (G x D)."""
    cosines = background @ vector
    spread = float(cosines.std())
    return (score - float(cosines.mean())) / spread if spread > 1e-6 else 0.0
