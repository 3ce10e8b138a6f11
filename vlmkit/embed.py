"""embed: pictures and texts become unit vectors."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from vlmkit.images import PictureError, ahead, open_picture
from vlmkit.inputs import Item
from vlmkit.models import Embedder, Model, digits_of
from vlmkit.models.batch import BatchSize
from vlmkit.records import Failed, Record, decode_embedding

if TYPE_CHECKING:
    import numpy as np


@dataclass(slots=True)
class _Ready:
    """A record with what stands for it until its batch is full: a text, a preprocessed picture, or a vector (D)."""

    record: Record
    text: str | None = None
    picture: "np.ndarray | None" = None
    vector: "np.ndarray | None" = None


def embed(
    items: Iterable[Item | Failed], model: Model, *, texts: bool, batch_size: int, workers: int
) -> Iterator[Record | Failed]:
    """Each item's record with `model` and `embedding`, in input order; pictures also get what their file tells."""
    import numpy as np

    for found in vectors(items, model, texts=texts, batch_size=batch_size, workers=workers):
        if isinstance(found, Failed):
            yield found
        else:
            record, vector = found
            yield record | {"model": model.identity, "embedding": vector.astype(np.float16)}


def vectors(
    items: Iterable[Item | Failed],
    model: Model,
    *,
    texts: bool = False,
    reuse: bool = False,
    batch_size: int,
    workers: int,
) -> "Iterator[tuple[Record, np.ndarray] | Failed]":
    """Each item's record and its unit vector (D float32), in input order.

    Pictures are decoded ahead in `workers` threads; at most two batches wait. A `batch_size` of 0 is the one that suits
    the model and its device. With `texts` the field `text` is
    embedded even where there is a picture; with `reuse` an embedding that this model made is taken as it is.
    """

    def prepare(item: Item | Failed) -> _Ready | Failed:
        if isinstance(item, Failed):
            return item
        try:
            if reuse and digits_of(str(item.record.get("model"))) == digits_of(model.identity):
                return _Ready(item.record, vector=decode_embedding(item.record.get("embedding")))
            if texts or item.record.get("image") is None:
                return _Ready(item.record, text=_text(item.record))
            return _picture(item, model.embedder)
        except (PictureError, ValueError) as error:
            return Failed.of(item.record, error)

    sizes = BatchSize(batch_size) if batch_size else model.embedder.batch
    ready = ahead(items, prepare, workers, depth=2 * sizes.largest)
    while batch := list(islice(ready, sizes.size)):
        yield from _embed_batch(batch, model.embedder)


def _text(record: Record) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise ValueError("neither image nor text to embed" if text is None else "text is not a string")
    return text


def _picture(item: Item, embedder: Embedder) -> _Ready:
    source = item.locate()
    image, width, height = open_picture(source, embedder.size)
    facts = {"mtime": source.mtime, "bytes": source.size, "width": width, "height": height}
    return _Ready(item.record | facts, picture=embedder.preprocess(image))


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
