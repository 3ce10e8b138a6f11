"""search --queries: a result list for each record or line of text."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vlmkit.cli.options import Run
from vlmkit.errors import VlmkitError
from vlmkit.io.records import Failed, Record, fingerprint_of
from vlmkit.io.sources import is_picture_name
from vlmkit.io.terminal import stdin_is_terminal
from vlmkit.io.walk import LeftOut

if TYPE_CHECKING:
    import numpy as np

    from vlmkit.io.reading import Item
    from vlmkit.models.types import Embedder

    Embedded = tuple[Record, np.ndarray]


def read_queries(name: str, left_out: LeftOut) -> "Iterator[Item | Failed]":
    from vlmkit.io.inputs import Reading, read_inputs

    if name == "-" and stdin_is_terminal():
        raise VlmkitError("no queries", "pipe records or lines of text in")
    return read_inputs([name], Reading(texts=not is_picture_name(name), one_picture=True, left_out=left_out))


def embed_queries(
    run: Run, items: "Iterator[Item | Failed]", made_by: str | None, load: "Callable[[], Embedder]", allow_private: bool
) -> "Iterator[Embedded | Failed]":
    """Records of --queries with their vectors: their own where they are by `made_by`, the model of the index."""
    from vlmkit.embed import own_vectors, vectors

    how: dict[str, Any] = {"batch_size": run.batch_size, "workers": run.threads, "allow_private": allow_private}
    return own_vectors(items, fingerprint_of(made_by or ""), lambda some: vectors(some, load(), reuse=True, **how))
