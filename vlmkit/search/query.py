"""Queries: texts, pictures and records of an index, each with a weight, add up to one unit vector."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.index import VectorIndex
from vlmkit.index.base import Slot
from vlmkit.io.images import open_picture
from vlmkit.io.records import fingerprint_of, name_of
from vlmkit.io.sources import PictureError, open_source
from vlmkit.models.types import Embedder

WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+):\s*(.*\S.*)", re.DOTALL)
MIN_NORM = 1e-3  # of the weights' sum; float16 vectors leave some 5e-4 of a picture taken from itself


@dataclass(frozen=True, slots=True)
class Query:
    """The parts of one query, as the user wrote them: `like` are ids of records, the others may bring a weight."""

    texts: Sequence[str] = ()
    images: Sequence[str] = ()
    minus: Sequence[str] = ()
    like: Sequence[str] = ()
    allow_private: bool = False  # for pictures by URL

    def __str__(self) -> str:
        added = " + ".join([*self.texts, *self.images, *self.like])
        return "".join([added, *(f" - {text}" for text in self.minus)]).strip()

    def knows_nothing(self, model: Embedder) -> bool:
        """Whether the query is of words alone, none of which the model knows."""
        texts = [*self.words, *self.words_of_minus]
        return not (self.images or self.like) and all(map(model.knows_nothing_of, texts))

    @property
    def words(self) -> list[str]:
        """The texts without their weights."""
        return [text for _, text in map(weighted_text, self.texts)]

    @property
    def words_of_minus(self) -> list[str]:
        return [text for _, text in map(weighted_text, self.minus)]

    @property
    def is_words(self) -> bool:
        """Whether it consists of words alone."""
        return bool(self.texts or self.minus) and not (self.images or self.like)

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


def query_vector(query: Query, index: VectorIndex, model: Embedder | None) -> np.ndarray:
    """One unit vector (1 x D float32): the weighted sum of the parts' unit vectors, those of `minus` subtracted.

    This is the arithmetic of rclip. `model` may be None where the query needs none. Raises VlmkitError for a picture or
    id that is not there, and where the sum vanishes.
    """
    weights: list[float] = []
    vectors = []
    if model is not None:
        texts = [weighted_text(text) for text in query.texts]
        texts += [(-weight, text) for weight, text in map(weighted_text, query.minus)]
        files = [weighted_file(name) for name in query.images]
        weights += [weight for weight, _ in texts + files]
        if texts:
            vectors.append(model.embed_user_texts([text for _, text in texts]))
            model.tell_cut_texts()
        if files:
            pictures = [_open(model, name, query.allow_private) for _, name in files]
            vectors.append(model.embed_images(np.stack(pictures)))
    weights += [1.0] * len(query.like)
    if query.like:
        vectors.append(index.vectors_at(slots_of(index, query.like)))
    return combined(weights, np.concatenate(vectors))


def combined(weights: Sequence[float], vectors: np.ndarray) -> np.ndarray:
    """The weighted sum of unit vectors (N x D), normalised: 1 x D float32. Raises VlmkitError where it vanishes."""
    total = np.array([weights], np.float32) @ vectors
    norm = np.linalg.norm(total)
    if not norm > MIN_NORM * sum(map(abs, weights)):
        raise VlmkitError("the parts of the query cancel out", "change a weight, or leave out a --minus")
    return total / norm


def _open(model: Embedder, name: str, allow_private: bool) -> np.ndarray:
    from vlmkit.io.http import HttpClient

    try:
        with HttpClient(allow_private=allow_private) as web:
            image, _, _ = open_picture(open_source(name, web), model.size)
    except PictureError as error:
        raise VlmkitError(f"{name}: {error}", "name another picture") from None
    return model.preprocess(image)


def slots_of(index: VectorIndex, ids: Sequence[str]) -> list[Slot]:
    """The slots of records by id. Raises VlmkitError for one that is not in the index."""
    slots = []
    for key in ids:
        slot = index.slot_of(key)
        if slot is None:
            what = f"--like {key}: no such record in the index at {index.name}"
            raise VlmkitError(what, "give an id as search prints it, or a picture with --image")
        slots.append(slot)
    return slots


def load_model(index: VectorIndex, name: str | None, load: Callable[[str], Embedder]) -> Embedder:
    """The model that made the vectors of `index`; `name` says where it is, if it was moved.

    Raises VlmkitError where the index does not say which model that was, or where it is another one.
    """
    made_by = index.model
    if made_by is None:
        what = f"the index at {index.name} does not say which model made its vectors"
        raise VlmkitError(what, "look in it with --like ID, or make it again from records that name their model")
    try:
        model = load(name or name_of(made_by))
    except VlmkitError as error:
        if name is not None:
            raise
        raise VlmkitError(f"the index needs its model, and {error.what}", "name where it is now with -m") from None
    if fingerprint_of(made_by) != fingerprint_of(model.identity):
        what = f"the index at {index.name} holds vectors of {made_by}, not of {model.identity}"
        raise VlmkitError(what, "name its model with -m, or remove that folder and index the pictures again")
    return model
