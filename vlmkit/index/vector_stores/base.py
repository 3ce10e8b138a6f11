"""What a vector store can do: it is an index for searches, and takes records."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.index.base import VectorIndex
from vlmkit.index.vector_stores import STORES
from vlmkit.io.records import Record


class Row(NamedTuple):
    """A record without its embedding, and that: D float32, a unit vector."""

    record: Record
    vector: np.ndarray


class VectorStore(VectorIndex, Protocol):
    """An index in a vector store. `Store(address)` opens one that is there, and raises NoIndex where there is none."""

    def __init__(self, address: str) -> None: ...
    def __enter__(self) -> "VectorStore": ...

    @classmethod
    def create(cls, address: str, model: str | None, dim: int) -> "VectorStore":
        """Open the index at `address`, made first where there is none. Raises VlmkitError where it does not fit."""

    def fetch(self, keys: Sequence[str]) -> dict[str, Row]:
        """The records that are there of those with these ids, by id."""

    def upsert(self, rows: Sequence[Row]) -> None:
        """Put records in, in place of those with the same ids; all are there once this returns. Raises VlmkitError.

        There are no more than `copying` puts into a batch.
        """


def load_store(name: str) -> tuple[type[VectorStore], str]:
    """The class of the store that `name` begins with, and the address it is to be called with. Raises VlmkitError."""
    scheme, colon, address = name.partition(":")
    if not colon or scheme not in STORES:
        known = " or ".join(f"{scheme}:" for scheme in STORES)
        raise VlmkitError(f"{name} is not the address of a vector store", f"begin it with {known}")
    return STORES.load(scheme), address
