"""embed: pictures and texts become unit vectors."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from vlmkit.io.executor import BatchStage, FetchStage, Lazy, Stage, map_ordered
from vlmkit.io.images import open_picture, open_with_facts
from vlmkit.io.inputs import Item
from vlmkit.io.parts import Part, file_hash
from vlmkit.io.pictures import picture_names
from vlmkit.io.records import Failed, Record, decode_embedding, fingerprint_of, to_float16, unless_failed
from vlmkit.io.sources import Memory, PictureError, content_hash, file_facts, is_url
from vlmkit.models.load import load_chat_model, load_embedder
from vlmkit.models.ocr.base import OcrModel, text_of
from vlmkit.models.types import Embedder, RequestError

if TYPE_CHECKING:
    import numpy as np


@dataclass(slots=True)
class Prepared:
    """A record with what its batch is made of: a text, a preprocessed picture, or a vector (D) that it brought."""

    record: Record
    text: str | None = None
    picture: "np.ndarray | None" = None
    vector: "np.ndarray | None" = None


@dataclass
class Fetch(FetchStage):
    """Item -> Item with the picture that its URL leads to; with `texts` no picture is needed."""

    texts: bool = False
    reuse: str | None = None
    ocr: bool = False

    def __call__(self, item: Item) -> Item | Failed:
        image = item.record.get("image")
        is_known = is_reusable(item.record, self.reuse) and not (self.ocr and lacks_text(item.record))
        needs_none = self.texts or item.source is not None or is_known
        if needs_none or not isinstance(image, str) or not is_url(image):
            return item
        try:
            return Item(item.record, self._web.fetch(image))
        except PictureError as error:
            return Failed.of(item.record, error)


@dataclass
class Decode(Stage):
    """Item -> Prepared, with what `ocr` reads in its picture. A vector of the fingerprint `reuse` is taken as it is."""

    model: Lazy[Embedder]
    workers: int = 1
    depth: int = 2
    texts: bool = False
    reuse: str | None = None
    ocr: Lazy[OcrModel] | None = None

    def __call__(self, item: Item) -> Prepared | Failed:
        try:
            if is_reusable(item.record, self.reuse):
                vector = self._own_vector(item.record)
                return Prepared(self._read(item.record, item), vector=vector)
            if self.texts or item.record.get("image") in (None, ""):
                return Prepared(item.record, text=_text(item.record))
            prepared = _picture(item, self.model())
            prepared.record = self._read(prepared.record, item)
            return prepared
        except (PictureError, ValueError) as error:
            return Failed.of(item.record, error)
        except RequestError as error:
            return Failed.of(item.record, error, error.remedy)

    def _read(self, record: Record, item: Item) -> Record:
        """`record` with `ocr`, read in the picture in full: what is embedded may be a fraction of it."""
        if self.ocr is None or not lacks_text(record):
            return record
        source = item.locate()
        known = source.details() if isinstance(source, Part) else {}
        return record | {"ocr": known["ocr"] if "ocr" in known else text_of(self.ocr().read(open_picture(source)[0]))}

    def _own_vector(self, record: Record) -> "np.ndarray":
        vector = decode_embedding(record.get("embedding"))
        if len(vector) != self.model().dim:
            raise ValueError(f"its embedding has {len(vector)} numbers, those of its model {self.model().dim}")
        return vector


@dataclass
class Encode(BatchStage):
    """Prepared -> (record, unit vector of D float32). A `batch_size` of 0 is what suits the model and its device."""

    model: Lazy[Embedder]
    batch_size: int = 0

    def size(self) -> int:
        return self.batch_size or self.model().batch.size

    def __call__(self, batch: list[Prepared]) -> "list[tuple[Record, np.ndarray] | Failed]":
        import numpy as np

        is_known = {id(one): one.text is not None and not self.model().knows_nothing_of(one.text) for one in batch}
        pictures = [entry.picture for entry in batch if entry.picture is not None]
        texts = [entry.text for entry in batch if entry.text is not None and is_known[id(entry)]]
        of_pictures = iter(self.model().embed_images(np.stack(pictures)) if pictures else ())
        of_texts = iter(self.model().embed_user_texts(texts) if texts else ())
        results: list[tuple[Record, np.ndarray] | Failed] = []
        for entry in batch:
            if entry.vector is not None:
                results.append((entry.record, entry.vector))
            elif entry.text is None or is_known[id(entry)]:
                results.append((entry.record, next(of_pictures if entry.text is None else of_texts)))
            else:
                what = "the model does not know any word of the text"
                results.append(Failed.of(entry.record, what, "use words of a language that it knows"))
        return results


def vectors(
    items: Iterable[Item | Failed],
    model: Embedder,
    *,
    texts: bool = False,
    reuse: bool = False,
    batch_size: int,
    workers: int,
    allow_private: bool = False,
    ocr: OcrModel | None = None,
) -> "Iterator[tuple[Record, np.ndarray] | Failed]":
    """Each item's record and its unit vector (D float32), in input order; at most two batches wait.

    With `texts` the field `text` is embedded even where there is a picture; with `reuse` an embedding that this model
    made is taken as it is. `ocr` reads what is written in pictures, unless their record says it. A `batch_size` of 0 is
    the one that suits the model and its device. Only with `allow_private` may a URL lead to an address that is not
    public.
    """
    yield from map_ordered(stages(model, texts, reuse, batch_size, workers, allow_private, ocr), items)
    model.tell_cut_texts()


def stages(
    model: Embedder,
    texts: bool,
    reuse: bool,
    batch_size: int,
    workers: int,
    allow_private: bool,
    ocr: OcrModel | None = None,
) -> list[Stage]:
    """The pipeline of `vectors`."""
    lazy = Lazy(load_embedder, *model.load_arguments, value=model)
    reader: Lazy[OcrModel] | None = None
    if ocr is not None:
        reader = Lazy(load_chat_model, *ocr.load_arguments, value=ocr)  # type: ignore[arg-type]
    reused = fingerprint_of(model.identity) if reuse else None
    depth = 2 * (batch_size or model.batch.largest)
    return [
        Fetch(allow_private, texts=texts, reuse=reused, ocr=ocr is not None),
        Decode(lazy, workers, depth, texts, reused, reader),
        Encode(lazy, batch_size),
    ]


def embed(
    items: Iterable[Item | Failed],
    model: Embedder,
    *,
    texts: bool,
    batch_size: int,
    workers: int,
    floats: bool = False,
    allow_private: bool = False,
    ocr: OcrModel | None = None,
) -> Iterator[Record | Failed]:
    """Each item's record with `model` and `embedding`, in input order; pictures also get facts of their file.

    An embedding that this model made is kept bit for bit, unless `texts` are wanted. With `floats` the embedding is a
    list, each number exactly the float16, in place of an array.
    """
    import numpy as np

    fingerprint = None if texts else fingerprint_of(model.identity)

    def to_record(found: "tuple[Record, np.ndarray]") -> Record:
        kept = is_reusable(found[0], fingerprint)
        embedding = to_float16(found[0]["embedding"]) if kept else found[1].astype(np.float16)
        return found[0] | {"model": model.identity, "embedding": embedding.tolist() if floats else embedding}

    how: dict[str, Any] = {"texts": texts, "reuse": not texts, "allow_private": allow_private, "ocr": ocr}
    embedded = vectors(items, model, **how, batch_size=batch_size, workers=workers)
    return map(unless_failed(to_record), embedded)


def own_vectors(
    items: Iterator[Item | Failed],
    fingerprint: str,
    embedded: "Callable[[Iterable[Item | Failed]], Iterator[tuple[Record, np.ndarray] | Failed]]",
) -> "Iterator[tuple[Record, np.ndarray] | Failed]":
    """The vectors that records bring, of the model with this fingerprint; from the first one without on, `embedded`.

    So vectors from elsewhere need no model. A fingerprint of "" is that of records that name none.
    """
    for item in items:
        if isinstance(item, Failed):
            yield item
        elif not is_reusable(item.record, fingerprint):
            yield from embedded(chain([item], items))
        else:
            try:
                yield item.record, decode_embedding(item.record["embedding"])
            except ValueError as error:
                yield Failed.of(item.record, error)


def when_needed(
    items: Iterator[Item | Failed], embedded: Callable[[Iterable[Item | Failed]], Iterator[Record | Failed]]
) -> Iterator[Record | Failed]:
    """`embedded(items)`, but called when the first item comes: without one, no model is loaded."""
    for item in items:
        if isinstance(item, Failed):
            yield item
        else:
            yield from embedded(chain([item], items))


def is_reusable(record: Record, fingerprint: str | None) -> bool:
    """Whether `record` brings a vector of the model with this fingerprint."""
    known = record.get("embedding") is not None and fingerprint is not None
    return known and fingerprint_of(str(record.get("model") or "")) == fingerprint


def lacks_text(record: Record) -> bool:
    """Whether `record` has a picture, and does not say what is written in it."""
    return record.get("image") not in (None, "") and not isinstance(record.get("ocr"), str)


def _text(record: Record) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        if len(picture_names(record)) > 1:  # raises ValueError that names a field with another picture
            raise ValueError("several pictures where one is required")
        if text is None and record.get("embedding") is not None:
            made_by = record.get("model") or "an unnamed model"
            raise ValueError(f"its embedding is by {made_by}, and there is neither image nor text to embed")
        raise ValueError("neither image nor text to embed" if text is None else "text is not a string")
    return text


def _picture(item: Item, model: Embedder) -> Prepared:
    source = item.locate()
    facts = file_facts(source)
    if isinstance(source, Part):
        image, width, height = open_picture(source, model.size)
        details = {} if "ocr" in item.record else source.details()
        facts |= source.fields | details | {"hash": file_hash(source.file), "width": width, "height": height}
    else:
        data = source.read()
        image, of_picture = open_with_facts(Memory(data, source.mtime), model.size)
        facts |= {"hash": content_hash(data)} | of_picture
    try:
        preprocessed = model.preprocess(image)
    except MemoryError:
        raise PictureError("not enough memory to scale it") from None
    return Prepared(item.record | facts, picture=preprocessed)
