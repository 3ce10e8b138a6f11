"""What to look for: texts, pictures and records of an index add up to one unit vector, each with its weight."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.index import Index
from vlmkit.io.http import HttpClient
from vlmkit.io.images import open_picture
from vlmkit.io.records import fingerprint_of
from vlmkit.io.sources import PictureError, open_source
from vlmkit.models.types import Embedder

if TYPE_CHECKING:
    import numpy as np

WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+):\s*(.*\S.*)", re.DOTALL)
VANISHES = 1e-3  # of the weights' sum; float16 vectors leave some 5e-4 of a picture taken from itself


@dataclass(frozen=True, slots=True)
class Question:
    """The parts of one query, as the user wrote them: `like` are ids of records, the others may bring a weight."""

    texts: Sequence[str] = ()
    images: Sequence[str] = ()
    minus: Sequence[str] = ()
    like: Sequence[str] = ()
    allow_private: bool = False  # for pictures by URL

    def __str__(self) -> str:
        wanted = " + ".join([*self.texts, *self.images, *self.like])
        return "".join([wanted, *(f" - {text}" for text in self.minus)]).strip()

    def __bool__(self) -> bool:
        return self.needs_model or bool(self.like)

    @property
    def needs_model(self) -> bool:
        return bool(self.texts or self.images or self.minus)


def weighted_text(text: str) -> tuple[float, str]:
    """`2:golden retriever` is (2.0, "golden retriever"). `16:9 screen` has weight 1: a digit after the colon."""
    found = WEIGHT.fullmatch(text)
    if found is None or text[found.end(1) + 1].isdigit():
        return 1.0, text
    return float(found[1]), found[2]


def weighted_file(name: str) -> tuple[float, str]:
    """`2:pool.jpg` is (2.0, "pool.jpg"), unless a file has that whole name."""
    found = WEIGHT.fullmatch(name)
    return (1.0, name) if found is None or os.path.lexists(name) else (float(found[1]), found[2])


def query_vector(question: Question, index: Index, embedder: Embedder | None) -> "np.ndarray":
    """One unit vector (1 x D float32): the weighted sum of the parts' unit vectors, those of `minus` subtracted.

    This is the arithmetic of rclip. `embedder` may be None where the question needs no model. Raises VlmkitError for a
    picture or id that is not there, and where the sum vanishes.
    """
    import numpy as np

    texts = [weighted_text(text) for text in (*question.texts, *question.minus)]
    files = [weighted_file(name) for name in question.images]
    signs = [1.0] * len(question.texts) + [-1.0] * len(question.minus)
    weights = [weight * sign for (weight, _), sign in zip(texts, signs, strict=True)]
    parts = []
    if embedder is not None and texts:
        parts.append(embedder.embed_texts([text for _, text in texts]))
    if embedder is not None and files:
        parts.append(
            embedder.embed_images(np.stack([_open(embedder, name, question.allow_private) for _, name in files]))
        )
    parts += [index.vector(slot)[None] for slot in slots_of(index, question.like)]
    weights += [weight for weight, _ in files] + [1.0] * len(question.like)
    total = np.array([weights], np.float32) @ np.concatenate(parts)
    norm = np.linalg.norm(total)
    if not norm > VANISHES * sum(map(abs, weights)):
        raise VlmkitError("the parts of the query cancel out", "change a weight, or leave out a --minus")
    return total / norm


def slots_of(index: Index, ids: Sequence[str]) -> list[int]:
    """The slots of records by id. Raises VlmkitError for one that is not in the index."""
    slots = []
    for key in ids:
        slot = index.slot_of(key)
        if slot is None:
            what = f"--like {key}: no such record in the index at {index.folder}"
            raise VlmkitError(what, "give an id as search prints it, or a picture with --image")
        slots.append(slot)
    return slots


def check_model(index: Index, model: Embedder) -> None:
    """Raise VlmkitError unless `model` made the vectors of `index`; digits decide, names may differ."""
    if fingerprint_of(index.state.model or "") != fingerprint_of(model.identity):
        what = f"the index at {index.folder} holds vectors of {index.state.model}, not of {model.identity}"
        raise VlmkitError(what, "name its model with -m, or remove that folder and index the pictures again")


def check_named(index: Index) -> None:
    """Raise VlmkitError where the index does not say which model made its vectors."""
    if index.state.model is None:
        what = f"the index at {index.folder} does not say which model made its vectors"
        raise VlmkitError(what, "look in it with --like ID, or make it again from records that name their model")


def _open(embedder: Embedder, name: str, allow_private: bool) -> "np.ndarray":
    try:
        with HttpClient(allow_private=allow_private) as web:
            image, _, _ = open_picture(open_source(name, web), embedder.size)
    except PictureError as error:
        raise VlmkitError(f"{name}: {error}", "name another picture") from None
    return embedder.preprocess(image)
