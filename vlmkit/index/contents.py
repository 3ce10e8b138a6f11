"""What an index knows by content, and which of it has moved: its file is gone from where it was."""

import os
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from vlmkit.index.prune import dangling, unmounted
from vlmkit.index.reader import Index
from vlmkit.io.records import Record
from vlmkit.io.sources import UnreadContainer, is_gone

FACTS = {"image": str, "hash": str, "bytes": int}  # of a record of a file


class Known(NamedTuple):
    """A record of the same content with its vector (D float16); `has_moved`: its file is gone."""

    record: Record
    vector: np.ndarray
    has_moved: bool


class _Columns(NamedTuple):
    """Of the records of files, in ascending order of `keys`: hashes of their content (uint64), slots, and all sizes."""

    keys: np.ndarray
    slots: np.ndarray
    sizes: frozenset[int]


class Contents:
    """The files of an index by content, read once, when first needed; a slot is checked when it is looked up.

    `doubtful` counts files that may have moved or lie on a drive that is not mounted, by what is wrong with the place.
    """

    def __init__(self) -> None:
        self._columns: _Columns | None = None
        self._unlooked: dict[str, Iterator[tuple[int, Record]]] = {}  # whether their files are gone
        self._unmounted = cache(unmounted)
        self.doubtful: dict[str, int] = {}

    def has_size(self, index: Index, size: int | None) -> bool:
        return size in self._read(index).sizes

    def own(self, index: Index, record: Record) -> Known | None:
        """A record of the index, where it is that still."""
        slot = index.slot_of(str(record["id"]))
        return None if slot is None else _known(index, slot, record)

    def find(self, index: Index, digest: str, part: str) -> Known | None:
        """A record of this `hash` and of the `part` of a file, which is the empty text for a whole one.

        One whose file is gone if there is any, each of them once.
        """
        content = _content(digest, part)
        first = next(self.of(index, content), None)
        if first is None:
            return None
        for slot, record in self._unlooked.setdefault(content, iter([*self.of(index, content)])):
            if self._has_moved(record["image"]):
                return _known(index, slot, record, has_moved=True)
        return _known(index, *first)

    def of(self, index: Index, content: str) -> Iterator[tuple[int, Record]]:
        """Slots and records of this `hash`, of all parts of a file."""
        columns, key = self._read(index), _key(content)
        first, last = (int(np.searchsorted(columns.keys, key, side)) for side in ("left", "right"))
        for slot in columns.slots[first:last].tolist():
            record = index.get_slot(slot)
            if record is not None and content in _contents(record):
                yield slot, record

    def _has_moved(self, image: str) -> bool:
        try:
            if not is_gone(image):
                return False
        except UnreadContainer:
            return False
        if place := dangling(image) if os.path.islink(image) else self._unmounted(os.path.dirname(image)):
            self.doubtful[place] = self.doubtful.get(place, 0) + 1
        return not place

    def _read(self, index: Index) -> _Columns:
        if self._columns is None:
            files = [
                (_key(content), slot, record["bytes"])
                for slot, record in index.records()
                for content in _contents(record)
            ]
            keys = np.array([key for key, _, _ in files], np.uint64)
            order = np.argsort(keys, kind="stable")
            slots = np.array([slot for _, slot, _ in files], np.int64)
            self._columns = _Columns(keys[order], slots[order], frozenset(size for _, _, size in files))
        return self._columns


def _known(index: Index, slot: int, record: Record, has_moved: bool = False) -> Known:
    return Known(record, np.array(index.vectors[slot]), has_moved)


def part_of(image: str) -> str:
    """Which page or frame of a file `image` names."""
    return image.rpartition("#")[2]


def _contents(record: Record) -> list[str]:
    """What a record of a file is known by. A `#` may stand in the name of a file, or before a part of one."""
    if not all(isinstance(record.get(name), kind) for name, kind in FACTS.items()):
        return []
    parts = ["", part_of(record["image"])] if "#" in record["image"] else [""]
    return [_content(record["hash"], part) for part in parts]


def _content(digest: str, part: str) -> str:
    return f"{digest}#{part}" if part else digest


def _key(content: str) -> int:
    from xxhash import xxh3_64_intdigest

    return xxh3_64_intdigest(content.encode())
