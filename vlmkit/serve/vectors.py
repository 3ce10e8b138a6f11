"""Texts and pictures of a request as unit vectors, through the model's batches."""

import asyncio
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vlmkit.io.images import open_picture
from vlmkit.io.sources import Bytes, PictureError
from vlmkit.models.types import NAMED_WORDS, Embedder
from vlmkit.serve.models import Loaded
from vlmkit.serve.parts import Part, check_amount
from vlmkit.serve.service import Service

if TYPE_CHECKING:
    import numpy as np


async def part_vectors(service: Service, loaded: Loaded[Embedder], parts: Sequence[Part]) -> "list[np.ndarray]":
    """The unit vector of each part (D float32). Raises ApiError."""
    check_amount(parts)
    decode = partial(_preprocessed, loaded.model)

    async def vector(part: Part) -> "np.ndarray":
        if not part.is_picture:
            return await loaded.batcher("text", part.value)
        return await loaded.batcher("image", await service.pictures.open(part.value, decode, part.param))

    return await all_of([vector(part) for part in parts])


async def all_of(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of coroutines that run at the same time; where one fails, the others end."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def read_texts(service: Service, name: str, model: Embedder, texts: list[str]) -> tuple[int, list[str]]:
    """The tokens of `texts`, which are counted, and what their client should know: what the model does not read."""

    def read() -> tuple[int, list[str]]:
        tokens, cut = model.count_tokens(texts)
        unknown = list(dict.fromkeys(model.unknown_words(texts)))[:NAMED_WORDS]
        notes = [f"the model does not know {', '.join(unknown)}"] if unknown else []
        notes += [f"{cut} texts are longer than what the model reads, and were cut"] if cut else []
        return tokens, notes

    if not texts:
        return 0, []
    tokens, notes = await service.pictures.in_thread(read)
    service.metrics.tokens.labels(name, "prompt").inc(tokens)
    return tokens, notes


def _preprocessed(model: Embedder, source: Bytes) -> Any:
    image, _, _ = open_picture(source, model.size)
    try:
        return model.preprocess(image)
    except MemoryError:
        raise PictureError("not enough memory to scale it") from None
