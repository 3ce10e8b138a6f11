"""--changed: leave out what an index holds already, by what the file system tells, without opening a file.

embed: pictures and texts become unit vectors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.index import Index, NoIndex
from vlmkit.io.http import FETCHERS, HttpClient
from vlmkit.io.images import ahead, open_picture
from vlmkit.io.inputs import Item
from vlmkit.io.records import Failed, Record, batched, decode_embedding, fingerprint_of
from vlmkit.io.sources import PictureError, is_url
from vlmkit.models.batching import BatchSize
from vlmkit.models.types import Embedder

if TYPE_CHECKING:
    import numpy as np


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


@dataclass(slots=True)
class _Ready:
    """A record with what stands for it until its batch is full: a text, a preprocessed picture, or a vector (D)."""

    record: Record
    text: str | None = None
    picture: "np.ndarray | None" = None
    vector: "np.ndarray | None" = None


def embed(
    items: Iterable[Item | Failed],
    model: Embedder,
    *,
    texts: bool,
    batch_size: int,
    workers: int,
    floats: bool = False,
    allow_private: bool = False,
) -> Iterator[Record | Failed]:
    """Each item's record with `model` and `embedding`, in input order; pictures also get what their file tells.

    With `floats` the embedding is a list, each number exactly the float16, in place of an array.
    """
    import numpy as np

    embedded = vectors(items, model, texts=texts, batch_size=batch_size, workers=workers, allow_private=allow_private)
    for found in embedded:
        if isinstance(found, Failed):
            yield found
        else:
            record, vector = found
            embedding = vector.astype(np.float16)
            yield record | {"model": model.identity, "embedding": embedding.tolist() if floats else embedding}


def when_needed(
    items: Iterator[Item | Failed], embedded: Callable[[Iterable[Item | Failed]], Iterator[Record | Failed]]
) -> Iterator[Record | Failed]:
    """`embedded(items)`, but called when the first item comes: without one, no model is loaded."""
    for item in items:
        if isinstance(item, Failed):
            yield item
        else:
            yield from embedded(chain([item], items))


def vectors(
    items: Iterable[Item | Failed],
    model: Embedder,
    *,
    texts: bool = False,
    reuse: bool = False,
    batch_size: int,
    workers: int,
    allow_private: bool = False,
) -> "Iterator[tuple[Record, np.ndarray] | Failed]":
    """Each item's record and its unit vector (D float32), in input order.

    Pictures by URL are fetched ahead, then all are decoded ahead in threads; at most two batches wait. With `texts`
    the field `text` is embedded even where there is a picture; with `reuse` an embedding that this model made is taken
    as it is. A `batch_size` of 0 is the one that suits the model and its device. Only with `allow_private` may a URL
    lead to an address that is not public.
    """

    def reusable(record: Record) -> bool:
        return reuse and fingerprint_of(str(record.get("model"))) == fingerprint_of(model.identity)

    def fetch(item: Item | Failed) -> Item | Failed:
        image = None if isinstance(item, Failed) or texts or reusable(item.record) else item.record.get("image")
        if isinstance(item, Failed) or not isinstance(image, str) or not is_url(image):
            return item
        try:
            return Item(item.record, web.fetch(image))
        except PictureError as error:
            return Failed.of(item.record, error)

    def prepare(item: Item | Failed) -> _Ready | Failed:
        if isinstance(item, Failed):
            return item
        try:
            if reusable(item.record):
                return _Ready(item.record, vector=decode_embedding(item.record.get("embedding")))
            if texts or item.record.get("image") is None:
                return _Ready(item.record, text=_text(item.record))
            return _picture(item, model)
        except (PictureError, ValueError) as error:
            return Failed.of(item.record, error)

    sizes = BatchSize(batch_size) if batch_size else model.batch
    with HttpClient(allow_private=allow_private) as web:
        fetched = ahead(items, fetch, FETCHERS, depth=2 * FETCHERS)
        prepared = ahead(fetched, prepare, workers, depth=2 * sizes.largest)
        while batch := list(islice(prepared, sizes.size)):
            yield from _embed_batch(batch, model)


def _text(record: Record) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise ValueError("neither image nor text to embed" if text is None else "text is not a string")
    return text


def _picture(item: Item, embedder: Embedder) -> _Ready:
    source = item.locate()
    image, width, height = open_picture(source, embedder.size)
    facts = {"mtime": source.mtime, "bytes": source.size, "width": width, "height": height}
    try:
        preprocessed = embedder.preprocess(image)
    except MemoryError:
        raise PictureError("not enough memory to scale it") from None
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return _Ready(item.record | known, picture=preprocessed)


def _embed_batch(batch: list[_Ready | Failed], embedder: Embedder) -> "Iterator[tuple[Record, np.ndarray] | Failed]":
    import numpy as np

    ready = [entry for entry in batch if isinstance(entry, _Ready)]
    pictures = [(entry, entry.picture) for entry in ready if entry.picture is not None]
    texts = [(entry, entry.text) for entry in ready if entry.text is not None]
    if pictures:
        _fill(pictures, embedder.embed_images(np.stack([picture for _, picture in pictures])))
    if texts:
        _fill(texts, embedder.embed_texts([text for _, text in texts]))
    for entry in batch:
        if isinstance(entry, Failed):
            yield entry
        else:
            assert entry.vector is not None
            yield entry.record, entry.vector


def _fill(entries: "Sequence[tuple[_Ready, object]]", found: "np.ndarray") -> None:
    for (entry, _), vector in zip(entries, found, strict=True):
        entry.vector = vector
