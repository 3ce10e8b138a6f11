"""Copy an index into a vector store; a copy that was broken off goes on where it ended."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.index.reader import Index
from vlmkit.index.vector_stores.base import Row, VectorStore
from vlmkit.io.records import dumps

BATCH = 1000
BATCH_BYTES = 8 << 20  # of JSON, in which stores get them: Qdrant refuses more than 32 MB
NUMBER_BYTES = 16  # of a value of a vector
SAME = 1 - 1e-5  # the cosine of a vector with itself after stores have normalised and rounded it


@dataclass(slots=True)
class Copied:
    """How many records a copy put in that were not there (`added`) or differed (`changed`), and how many it `kept`.

    `total` is how many the store holds at the end.
    """

    added: int = 0
    changed: int = 0
    kept: int = 0
    total: int = 0


def copy(index: Index, store: VectorStore, copied: Copied) -> Iterator[Row]:
    """Copy every record of `index`, counted in `copied`; yields each once it is in the store.

    What is there already is compared and not sent again. Raises VlmkitError where the store ends up with fewer records.
    """
    before = len(store)
    for rows in _batches(index):
        there = store.fetch([str(row.record["id"]) for row in rows]) if before else {}
        different = [row for row in rows if not _is_same(row, there.get(str(row.record["id"])))]
        if different:
            store.upsert(different)
        copied.added += len(rows) - len(there)
        copied.kept += len(rows) - len(different)
        copied.changed += len(different) - (len(rows) - len(there))
        yield from rows
    copied.total = len(store)
    if copied.total < before + copied.added:
        what = f"{store.name} holds {copied.total:,} records, not the {before + copied.added:,} that were put in"
        raise VlmkitError(what, "run this again, and see the store's log if it stays so")


def _batches(index: Index) -> Iterator[list[Row]]:
    """The records in the order of their slots, as many at a time as a store takes."""
    rows: list[Row] = []
    size = 0
    for slot, record in index.records():
        rows.append(Row(record, index.vectors[slot].astype(np.float32)))
        size += NUMBER_BYTES * index.dim + len(dumps(record))
        if len(rows) == BATCH or size > BATCH_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _is_same(row: Row, there: Row | None) -> bool:
    if there is None or row.record != there.record:
        return False
    norms = float(np.linalg.norm(row.vector) * np.linalg.norm(there.vector))
    return float(row.vector @ there.vector) > SAME * norms
