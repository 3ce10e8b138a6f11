"""Which items an index holds already: unchanged, or the same content under another path or with another time."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vlmkit.index.contents import Contents, Known, part_of
from vlmkit.index.reader import Index, NoIndex
from vlmkit.io.inputs import Item
from vlmkit.io.parts import PARTS, Part, hash_of
from vlmkit.io.records import Failed, Record, batched
from vlmkit.io.sources import PictureError, UnreadContainer, file_facts, is_gone, is_uri

FACTS_OF_CONTENT = ("width", "height", "taken", "camera", "lat", "lon")
LOOKED_UP = 256  # items at a time: the index is open for that long only, so that a writer beside is not held up
MOVED_FROM = "moved_from"  # the field of the id that a record had before


@dataclass
class Kept:
    """How many items have the vector of the same content: those of files that `moved`, and `others`; and how many of
    these may have moved from places that look like a drive that is not mounted, by what looks so.
    """

    moved: int = 0
    others: int = 0
    doubtful: dict[str, int] = field(default_factory=dict)


def changed(
    items: Iterable[Item | Failed],
    folder: Path,
    on_kept: Callable[[Kept], None] = lambda _: None,
    contents: Contents | None = None,
    needs: Collection[str] = (),
) -> Iterator[Item | Failed]:
    """Those of `items` that the index at `folder` does not hold as they are; failures too. With no index all are new.

    A file is looked at where its path is new or its `mtime`, `bytes` or `ctime` differ. If then the index knows its
    content by `hash`, the item has that record's fields, but for another sample's, its model and embedding, and where
    the file of that record is gone, its id as MOVED_FROM; at the end `on_kept` gets the numbers of those. Content that
    is the same under the same path and `mtime` counts as unchanged. A URL in the index is not fetched. A text counts as
    changed where the `text` of its record differs. A picture whose record lacks a field that it `needs` counts as new.
    """
    known, counts = contents or Contents(), Counter[bool]()
    for batch in batched(items, LOOKED_UP):
        try:
            with Index(folder) as index:
                found = [one if isinstance(one, Failed) else _look(one, index, known, counts, needs) for one in batch]
        except NoIndex:
            found = list(batch)
        for item in found:
            if isinstance(item, Item):
                item.complete()
            if item is not None:
                yield item
    on_kept(Kept(counts[True], counts[False], known.doubtful))


def _look(item: Item, index: Index, known: Contents, counts: Counter[bool], needs: Collection[str]) -> Item | None:
    """`item`, with its vector where the index knows its content; None where it is unchanged."""
    record, image = index.get(str(item.record.get("id"))), item.record.get("image")
    if record is not None and record.get("image") != image:
        record = None
    if not isinstance(image, str):
        return None if record and image is None and item.record.get("text") == record.get("text") else item
    if record is not None and any(name not in record for name in needs):
        return item
    if is_uri(image):
        return item if record is None else None
    try:
        source = item.locate()
        facts = file_facts(source)
        is_new_choice = record is not None and item.record.get(PARTS, record.get(PARTS)) != record.get(PARTS)
        if record is not None and not is_new_choice and same(record, facts, "mtime", "bytes", "ctime"):
            return None
        if (record is None or facts["bytes"] != record.get("bytes")) and not known.has_size(index, facts["bytes"]):
            return item
        facts["hash"] = hash_of(source)
    except PictureError:
        return item  # embed reports what is wrong with it
    if record is not None and not is_new_choice and same(record, facts, "mtime", "bytes", "hash"):
        return None
    if record is not None and record.get("hash") == facts["hash"]:
        found = known.own(index, record)
    else:
        found = known.find(index, facts["hash"], part_of(image) if isinstance(source, Part) else "")
    if found is None:
        return item
    counts[found.has_moved] += 1
    item.complete()
    fields = found.record if isinstance(source, Part) else _fields(found, image)
    moved = {MOVED_FROM: found.record["id"]} if found.has_moved else {}
    vector = {"model": index.state.model, "embedding": found.vector}
    return Item(fields | item.record | facts | moved | vector, source)


def _fields(found: Known, image: str) -> Record:
    """What a record says about the same content at `image`: all; of a member of a tar that is still there the facts.

    Its other fields are of its own sample; this one has its captions in its own tar, or none.
    """
    record, before = found.record, found.record["image"]
    with contextlib.suppress(UnreadContainer):
        if found.has_moved or before == image or os.path.isfile(before) or is_gone(before):
            return record
    return {name: record[name] for name in ("id", "image", *FACTS_OF_CONTENT) if name in record}


def same(record: Record, facts: Record, *names: str) -> bool:
    """Whether these facts are those of the record; a `ctime` counts only where the record has one."""
    return all(facts.get(name) == record.get(name, facts.get(name) if name == "ctime" else None) for name in names)
