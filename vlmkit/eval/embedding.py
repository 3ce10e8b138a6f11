"""Vectors of the pictures and captions of an evaluation; vectors in the records are reused."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.eval.predictions import Options, Row
from vlmkit.io.records import Failed, batched

if TYPE_CHECKING:
    import numpy as np

    from vlmkit.models.types import Embedder

TEXTS_AT_ONCE = 256


def load_embedder(options: Options, name: str | None = None) -> "Embedder":
    """The model that -m names, or else the one called `name`. Raises VlmkitError where the options load none."""
    if options.model is None:
        raise VlmkitError("the records lack vectors and no model is given", "pass Options(model=…)")
    return options.model(name)


def embed_pictures(rows: Iterable[Row], model: "Embedder", options: Options) -> "np.ndarray":
    """Unit vectors of the rows' pictures, n x D. Raises VlmkitError where a picture cannot be read."""
    import numpy as np

    from vlmkit.embed import vectors
    from vlmkit.io.inputs import Item

    found = []
    items = (Item(row.record) for row in rows)
    for result in vectors(items, model, reuse=True, batch_size=options.batch_size, workers=options.workers):
        if isinstance(result, Failed):
            raise VlmkitError(f"{result.id or result.image}: {result.error}", "remove it from the file")
        found.append(result[1])
    return np.stack(found)


def embed_captions(texts: Sequence[str], model: "Embedder") -> "np.ndarray":
    """Unit vectors of `texts`, n x D."""
    import numpy as np

    return np.concatenate([model.embed_texts(batch) for batch in batched(texts, TEXTS_AT_ONCE)])
