"""--changed: leave out what an index holds already, by what the file system tells, without opening a file."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from vlmkit.index import Index, NoIndex
from vlmkit.inputs import Item
from vlmkit.records import Failed, Record, batched
from vlmkit.sources import PictureError
from vlmkit.urls import is_url

LOOKED_UP = 256  # items at a time: the index is open for that long only, so that a writer beside is not held up


def changed(items: Iterable[Item | Failed], folder: Path) -> Iterator[Item | Failed]:
    """Those of `items` that the index at `folder` does not hold, or with another `mtime` or `bytes`; failures too.

    Of a tar member these are the member's own. A URL that is in the index counts as unchanged: telling would take
    fetching it. A text counts as changed where the `text` of its record differs. Without an index all are new.
    """
    for batch in batched(items, LOOKED_UP):
        try:
            with Index(folder) as index:
                known = [isinstance(item, Item) and _known(item, index) for item in batch]
        except NoIndex:
            known = [False] * len(batch)
        yield from (item for item, same in zip(batch, known, strict=True) if not same)


def _known(item: Item, index: Index) -> bool:
    record = index.get(str(item.record.get("id")))
    return record is not None and _same(item, record)


def _same(item: Item, record: Record) -> bool:
    image = item.record.get("image")
    if image != record.get("image"):
        return False
    if image is None:
        return item.record.get("text") == record.get("text")
    if isinstance(image, str) and is_url(image):
        return True
    try:
        source = item.locate()
    except PictureError:
        return False  # embed tells what is wrong with it
    return (source.mtime, source.size) == (record.get("mtime"), record.get("bytes"))
