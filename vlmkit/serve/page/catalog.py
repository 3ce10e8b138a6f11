"""What the page knows of all records: their order by time, and which cameras, folders and years there are."""

import asyncio
import contextlib
import math
import os
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from vlmkit.index import Index
from vlmkit.io.records import Record

PATIENCE = 1.5  # seconds
LISTED = 100  # cameras, and folders
Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Catalog:
    """An index at one moment: `slots` newest first (int64), the `times` of these (float64, seconds since 1970, NaN
    where unknown), the most frequent `cameras` and `folders`, and whether any record has a place.
    """

    key: Key
    slots: np.ndarray
    times: np.ndarray
    cameras: list[str]
    folders: list[str]
    has_places: bool

    def between(self, after: float | None, before: float | None) -> np.ndarray:
        """The slots (ascending) of a time in [after, before)."""
        chosen = np.ones(len(self.slots), bool)
        if after is not None:
            chosen &= self.times >= after
        if before is not None:
            chosen &= self.times < before
        return np.sort(self.slots[chosen])


def key_of(index: Index) -> Key:
    """What every commit changes."""
    return index.state.generation, index.state.slots, index.state.count


def time_of(record: Record) -> float:
    """When the picture was taken, else when its file was changed, in seconds since 1970; NaN where neither is known."""
    taken = record.get("taken")
    if isinstance(taken, str):
        try:
            return datetime.fromisoformat(taken).timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    changed = record.get("mtime")
    return float(changed) if isinstance(changed, int | float) else math.nan


def read_catalog(folder: Path) -> Catalog:
    """The catalog of the index there. Raises VlmkitError."""
    slots: list[int] = []
    times: list[float] = []
    cameras: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    has_places = False
    with Index(folder) as index:
        for slot, record in index.records():
            slots.append(slot)
            times.append(time_of(record))
            if isinstance(camera := record.get("camera"), str):
                cameras[camera] += 1
            if isinstance(image := record.get("image"), str):
                folders[os.path.dirname(image)] += 1
            has_places = has_places or "lat" in record
        found = np.array(times, np.float64)
        order = np.lexsort((-np.array(slots, np.int64), -np.nan_to_num(found, nan=-np.inf)))
        return Catalog(
            key_of(index),
            np.array(slots, np.int64)[order],
            found[order],
            [name for name, _ in cameras.most_common(LISTED)],
            [name for name, _ in folders.most_common(LISTED)],
            has_places,
        )


class CatalogReader:
    """The catalog of an index that may change: the last one is used while a new one is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._catalog: Catalog | None = None
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Catalog:
        """The catalog of the index whose key is this, or of a moment before while that is read. Raises VlmkitError."""
        if self._reading is None and (self._catalog is None or self._catalog.key != key):
            self._reading = asyncio.ensure_future(self._read())
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        if self._reading is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._reading), PATIENCE if self._catalog else None)
        assert self._catalog is not None
        return self._catalog

    async def _read(self) -> None:
        try:
            self._catalog = await asyncio.to_thread(read_catalog, self._folder)
        finally:
            self._reading = None
