"""What a search asks of an index, wherever its vectors are."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.index.where import Conditions
from vlmkit.io.records import Record

Slot = Any  # where a record stands in an index, which alone knows what that is: hashable


class Hit(NamedTuple):
    """A record found, with its cosine and its slot."""

    score: float
    record: Record
    slot: Slot


class NoIndex(VlmkitError):
    """There is no index, or nothing was ever saved in it."""


class VectorIndex(Protocol):
    """An index open for reading, a context manager: a folder, several of them, or a vector store.

    `name` is how messages call it, `model` the identity of the model that made its vectors, None if unknown, `dim` the
    number D of their values; its length is the number of records.
    """

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> "VectorIndex": ...
    def __exit__(self, *_: object) -> None: ...

    def search(self, queries: np.ndarray, k: int, among: Any = None) -> list[list[Hit]]:
        """The k nearest records of each query (N x D float32, unit vectors) by cosine, best first.

        With `among`, which `where` returned, in these alone.
        """

    def where(self, conditions: Conditions) -> Any:
        """The records that meet all `conditions`, for `search`; its length is their number."""

    def records_of(self, among: Any) -> Iterator[Record]:
        """The records that `where` found."""

    def explain(self, conditions: Conditions) -> list[str]:
        """Lines about conditions that no record can meet. Raises VlmkitError for an unknown field."""

    def slot_of(self, key: str) -> Slot | None:
        """The slot of the record with that id."""

    def vectors_at(self, slots: Sequence[Slot]) -> np.ndarray:
        """The vectors of slots, N x D float32."""

    def sample(self, count: int) -> np.ndarray:
        """The vectors of up to `count` records, the same ones each time, from all over the index (N x D float32)."""


class WordTable(Protocol):
    """The words of an index; a `match` is a query of FTS5. `total` is the number of records, hidden ones too."""

    @property
    def total(self) -> int: ...

    def count(self, match: str, most: int) -> int:
        """How many slots match, dead ones too, counted up to `most`."""

    def find(self, match: str, most: int, *, ranked: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Up to `most` live slots that match, ascending (int64), and their BM25 (float64), higher is better.

        BM25 by FTS5 (k1 1.2, b 0.75) over all its rows; zeros where it is not `ranked`, which is quicker.
        """


class WordIndex(VectorIndex, Protocol):
    """An index whose records can be found by their words, too: its slots are numbers."""

    def words(self, on_wait: Callable[[str], None] = ...) -> WordTable:
        """The words of the records; `on_wait` hears of what takes long. Raises VlmkitError."""

    def record(self, slot: int) -> Record:
        """The record in a live slot, without its embedding."""
