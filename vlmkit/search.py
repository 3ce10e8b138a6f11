"""search: texts and pictures as queries against an index."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.images import open_picture
from vlmkit.index import Index
from vlmkit.models import Embedder, Model, digits_of
from vlmkit.records import Record
from vlmkit.sources import PictureError
from vlmkit.tars import locate
from vlmkit.urls import Web, is_url

if TYPE_CHECKING:
    import numpy as np


def query_vector(embedder: Embedder, texts: Sequence[str], images: Sequence[str]) -> "np.ndarray":
    """One unit vector (1 x D float32): the sum of the texts' and pictures' vectors."""
    import numpy as np

    parts = []
    if texts:
        parts.append(embedder.embed_texts(list(texts)))
    if images:
        parts.append(embedder.embed_images(np.stack([_open(embedder, path) for path in images])))
    total = np.concatenate(parts).sum(axis=0, keepdims=True)
    return total / np.linalg.norm(total)


def _open(embedder: Embedder, path: str) -> "np.ndarray":
    try:
        with Web() as web:
            source = web.fetch(path) if is_url(path) else locate(path)
            image, _, _ = open_picture(source, embedder.size)
    except PictureError as error:
        raise VlmkitError(f"{path}: {error}", "name another picture") from None
    return embedder.preprocess(image)


def check_model(index: Index, model: Model) -> None:
    """Raise VlmkitError unless `model` made the vectors of `index`; digits decide, names may differ."""
    if digits_of(index.state.model or "") != digits_of(model.identity):
        what = f"the index at {index.folder} holds vectors of {index.state.model}, not of {model.identity}"
        raise VlmkitError(what, "name its model with -m, or remove that folder and index the pictures again")


def search(index: Index, vector: "np.ndarray", query: str, k: int) -> Iterator[Record]:
    """The k best records, each with `query`, `rank` from 1 and `score`, the cosine."""
    (hits,) = index.search(vector, k)
    for rank, hit in enumerate(hits, 1):
        yield hit.record | {"query": query, "rank": rank, "score": round(hit.score, 6)}
