"""Which items an index holds already: unchanged, or the same content under another path or with another time."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmkit.index.reader import Index, NoIndex
from vlmkit.io.inputs import Item
from vlmkit.io.records import Failed, Record, batched
from vlmkit.io.sources import PictureError, UnreadContainer, content_hash, file_facts, is_gone, is_uri

FACTS = {"image": str, "hash": str, "bytes": int}  # of a record of a file
FACTS_OF_CONTENT = ("width", "height", "taken", "camera", "lat", "lon")
LOOKED_UP = 256  # items at a time: the index is open for that long only, so that a writer beside is not held up


def changed(
    items: Iterable[Item | Failed], folder: Path, on_kept: Callable[[int], None] = lambda _: None
) -> Iterator[Item | Failed]:
    """Those of `items` that the index at `folder` does not hold as they are; failures too. With no index all are new.

    A file is looked at where its path is new or its `mtime`, `bytes` or `ctime` differ. If then the index knows its
    content by `hash`, the item has that record's fields, but for another sample's, its model and embedding; at the end
    `on_kept` gets the number of those. Content that is the same under the same path and `mtime` counts as unchanged. A
    URL in the index is not fetched. A text counts as changed where the `text` of its record differs.
    """
    known, kept = _Contents(), 0
    for batch in batched(items, LOOKED_UP):
        try:
            with Index(folder) as index:
                found = [item if isinstance(item, Failed) else _look(item, index, known) for item in batch]
        except NoIndex:
            found = list(batch)
        for item in found:
            if isinstance(item, Item):
                item.complete()
            kept += isinstance(item, _Kept)
            if item is not None:
                yield item
    on_kept(kept)


class _Kept(Item):
    """An item whose record has the model and embedding of the same content in the index."""


def _look(item: Item, index: Index, known: "_Contents") -> Item | None:
    """`item`, with its vector where the index knows its content; None where it is unchanged."""
    record, image = index.get(str(item.record.get("id"))), item.record.get("image")
    if record is not None and record.get("image") != image:
        record = None
    if not isinstance(image, str):
        return None if record and image is None and item.record.get("text") == record.get("text") else item
    if is_uri(image):
        return item if record is None else None
    try:
        source = item.locate()
        facts = file_facts(source)
        if record is not None and _same(record, facts, "mtime", "bytes", "ctime"):
            return None
        if (record is None or facts["bytes"] != record.get("bytes")) and not known.has_size(index, facts["bytes"]):
            return item
        facts["hash"] = content_hash(source.read())
    except PictureError:
        return item  # embed reports what is wrong with it
    if record is not None and _same(record, facts, "mtime", "bytes", "hash"):
        return None
    slot = known.slot(index, facts["hash"])
    if slot is None:
        return item
    item.complete()
    vector = {"model": index.state.model, "embedding": np.array(index.vectors[slot])}
    return _Kept(_fields(index.record(slot), image) | item.record | facts | vector, source)


def _fields(record: Record, image: str) -> Record:
    """What `record` says about the same content at `image`: all; of a member of a tar that is still there the facts.

    Its other fields are of its own sample; this one has its captions in its own tar, or none.
    """
    before = record["image"]
    with contextlib.suppress(UnreadContainer):
        if before == image or os.path.isfile(before) or is_gone(before):
            return record
    return {name: record[name] for name in ("id", "image", *FACTS_OF_CONTENT) if name in record}


def _same(record: Record, facts: Record, *names: str) -> bool:
    """Whether these facts are those of the record; a `ctime` counts only where the record has one."""
    return all(facts.get(name) == record.get(name, facts.get(name) if name == "ctime" else None) for name in names)


class _Columns(NamedTuple):
    """Of the records of files, in ascending order of `keys`: hashes of their `hash` (uint64), slots, and all sizes."""

    keys: np.ndarray
    slots: np.ndarray
    sizes: frozenset[int]


class _Contents:
    """The files of an index by content, read once, when first needed; a slot is checked when it is looked up."""

    def __init__(self) -> None:
        self._columns: _Columns | None = None

    def has_size(self, index: Index, size: int | None) -> bool:
        return size in self._read(index).sizes

    def slot(self, index: Index, digest: str) -> int | None:
        """The slot of a record of a file with this content."""
        columns, key = self._read(index), _key(digest)
        at = int(np.searchsorted(columns.keys, key))
        if at == len(columns.keys) or columns.keys[at] != key:
            return None
        slot = int(columns.slots[at])
        record = index.get_slot(slot)
        return slot if record is not None and record.get("hash") == digest else None

    def _read(self, index: Index) -> _Columns:
        if self._columns is None:
            files = [
                (_key(record["hash"]), slot, record["bytes"])
                for slot, record in index.records()
                if all(isinstance(record.get(name), kind) for name, kind in FACTS.items())
            ]
            keys = np.array([key for key, _, _ in files], np.uint64)
            order = np.argsort(keys, kind="stable")
            slots = np.array([slot for _, slot, _ in files], np.int64)
            self._columns = _Columns(keys[order], slots[order], frozenset(size for _, _, size in files))
        return self._columns


def _key(digest: str) -> int:
    from xxhash import xxh3_64_intdigest

    return xxh3_64_intdigest(digest.encode())
