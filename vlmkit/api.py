"""The Python interface: what `import vlmkit` offers to a program.

Paths are strings or path objects; an http(s) URL stands for its picture, `shard.tar/member.jpg` for a member of a tar
file. A model is a name, as -m takes it, or what `load_embedder` and `load_chat_model` return, which saves opening it
again. All functions raise VlmkitError, with one line that says what is wrong and what to do.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.io.records import Failed, Record
from vlmkit.models.types import CAPTIONS, ChatModel, Embedder, EndpointOptions, Hardware, Sampling

if TYPE_CHECKING:
    import numpy as np

    from vlmkit.index.near import Near
    from vlmkit.index.where import Condition
    from vlmkit.search.query import Query
    from vlmkit.search.search import Results, SearchOptions

Path = str | os.PathLike[str]
PATH = (str, os.PathLike)

__all__ = [
    "Index",
    "VlmkitError",
    "ask_images",
    "caption_images",
    "embed_images",
    "embed_texts",
    "load_chat_model",
    "load_embedder",
]


def load_embedder(name: str = "mini", *, device: str = "auto", precision: str | None = None) -> Embedder:
    """Open a dual encoder: `mini`, a name of open_clip or of transformers, a folder.

    `device` is auto, cpu, cuda or mps; `precision` fp32, bf16, fp16 or int8, None for what the model's name says.
    """
    from vlmkit.models.load import load_embedder as load

    return load(_a("name", name, str, "a name such as mini"), Hardware(device, precision=precision))


def load_chat_model(
    name: str = "mini", *, device: str = "auto", base_url: str | None = None, options: dict[str, Any] | None = None
) -> ChatModel:
    """Open a model that describes pictures and answers questions: `mini`, a name of transformers, a folder.

    `openai:NAME` is a model of the endpoint at `base_url`, to which each request brings `options`.
    """
    from vlmkit.models.load import load_chat_model as load

    return load(
        _a("name", name, str, "a name such as mini"), Hardware(device), EndpointOptions(base_url, options or {})
    )


def embed_images(paths: Iterable[Path], model: str | Embedder = "mini", *, batch_size: int = 0) -> "np.ndarray":
    """Unit vectors of pictures: N paths -> (N, D) float32, in order.

    A `batch_size` of 0 is the one that suits the model and its device.
    """
    return _vectors([{"id": str(path), "image": _located(path)} for path in _listed(paths)], model, batch_size)


def embed_texts(texts: Iterable[str], model: str | Embedder = "mini", *, batch_size: int = 0) -> "np.ndarray":
    """Unit vectors of texts: N texts -> (N, D) float32, in order, in the space of `embed_images`."""
    given = [_a("texts", text, str, "a list of texts") for text in _listed(texts)]
    return _vectors([{"id": text, "text": text} for text in given], model, batch_size)


def caption_images(
    paths: Iterable[Path],
    model: str | ChatModel = "mini",
    *,
    length: str = "normal",
    prompt: str = "",
    max_tokens: int | None = None,
) -> list[str]:
    """One caption for each picture, in order. `length` is short, normal or long; each begins with `prompt`."""
    from vlmkit.generate.pipeline import caption, caption_sampling
    from vlmkit.generate.questions import ChatSample

    if length not in CAPTIONS:
        raise VlmkitError(f"length is {length!r}", f"give one of {', '.join(CAPTIONS)}")
    _a("prompt", prompt, str, "how the caption begins")
    if max_tokens is not None:
        _a("max_tokens", max_tokens, Integral, "a number from 1, or None", least=1)
    chat_model = _chat_model(model)
    samples = [ChatSample({"id": str(path)}, [_located(path)], n) for n, path in enumerate(_listed(paths))]
    sampling = caption_sampling(chat_model, length, Sampling(0), max_tokens)
    found = caption(samples, chat_model, sampling, length=length, start=prompt, batch_size=0, workers=_cores())
    return [record["caption"] for record in _complete(found)]


def ask_images(
    paths: Iterable[Path],
    question: str,
    model: str | ChatModel = "mini",
    *,
    together: bool = False,
    system: str = "",
    sampling: Sampling = Sampling(256),  # noqa: B008 (frozen)
) -> list[str]:
    """The answers to `question` about each picture, in order; with `together` one answer about all of them."""
    from vlmkit.generate.pipeline import GenerateOptions, ask
    from vlmkit.generate.questions import ChatSample

    if not _a("question", question, str, "one question").strip():
        raise VlmkitError("the question is empty", "write what you want to know")
    _a("system", system, str, "a text")
    _a("sampling", sampling, Sampling, "vlmkit.models.types.Sampling(max_tokens, temperature, top_p, seed)")
    chat_model = _chat_model(model)
    located = [_located(path) for path in _listed(paths)]
    if together and not located:
        raise VlmkitError("no pictures to ask about", "name some")
    groups = [located] if together else [[path] for path in located]
    samples = [
        ChatSample({"id": " ".join(group), "question": question}, list(group), n) for n, group in enumerate(groups)
    ]
    found = ask(samples, chat_model, sampling, GenerateOptions(system), batch_size=0, workers=_cores())
    return [record["answer"] for record in _complete(found)]


class Index:
    """An index that `vlmkit index` made, open for reading as it is at this moment; a context manager.

    Each thread must open an index of its own.
    """

    def __init__(self, path: Path) -> None:
        from vlmkit.index import Index as Reader
        from vlmkit.index import index_folder

        _a("path", path, PATH, "a path, or the name of an index")
        self._reader = Reader(index_folder(os.fspath(path)))
        self._embedder: Embedder | None = None

    @classmethod
    def open(cls, path: Path) -> "Index":
        """The index at `path`, or the one of that name in the user's data folder, as -i takes it."""
        return cls(path)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._reader)

    def close(self) -> None:
        self._reader.__exit__()

    @property
    def model(self) -> str | None:
        """The identity of the model that made its vectors: `name@` and twelve hex digits."""
        return self._reader.state.model

    def info(self) -> Record:
        """`path, model, dim, count, type, bytes, reason`."""
        return self._reader.info()

    def search(
        self,
        text: str | Sequence[str] = (),
        *,
        image: Path | Sequence[Path] = (),
        minus: str | Sequence[str] = (),
        like: str | Sequence[str] = (),
        k: int = 10,
        where: str | Sequence[str] = (),
        near: tuple[float, float, float] | None = None,
        by: str = "both",
        model: str | Embedder | None = None,
    ) -> list[Record]:
        """The `k` nearest records, best first, with `rank` (from 1) and `score`, the cosine in -1..1.

        Texts, pictures and the records whose ids are `like` add up to one query, `minus` is subtracted; a number and a
        colon are a weight, as in "2:a dog". `where` holds conditions such as "width>=512", all of which must be met.
        `near` is a latitude, a longitude (degrees) and how many kilometres from there: hits get their `distance`, and
        come nearest first where there is no query.
        `by` is "meaning", "words" (which opens no model, and gives no `score`), or "both": meaning, and words where
        records have most of those of the text. The model is the index's own unless another one is given.
        """
        from vlmkit.index.near import parse_near
        from vlmkit.index.where import parse_condition
        from vlmkit.search.near import nearest, with_distances
        from vlmkit.search.query import Query
        from vlmkit.search.search import SearchOptions

        _a("k", k, Integral, "a number from 1", least=1)
        if by not in ("both", "meaning", "words"):
            raise VlmkitError(f"by is {by!r}", "give both, meaning or words")
        images = [_located(path) for path in _several(image, "image")]
        query = Query(_several(text, "text"), images, _several(minus, "minus"), _several(like, "like"))
        place = None if near is None else parse_near(",".join(map(str, _listed(near))))
        by_place = place is not None and not query.needs_model and not query.like
        if not (query.needs_model or query.like or by_place):
            raise VlmkitError("nothing to look for", "give text, image=, like= or near=")
        conditions: list[Condition | Near] = [*map(parse_condition, _several(where, "where")), *filter(None, [place])]
        among = self._reader.where(conditions) if conditions else None
        if among is not None and not len(among):
            self._reader.explain(conditions)  # raises where no record has such a field
        if place is not None and by_place:
            return nearest(self._reader, place, among, k).records
        found = self._found(query, by, SearchOptions(k, among), model)
        return found.records if place is None else next(with_distances([found], place)).records

    def _found(self, query: "Query", by: str, options: "SearchOptions", model: str | Embedder | None) -> "Results":
        from vlmkit.index.store import silent
        from vlmkit.index.words import has_fts5
        from vlmkit.search.query import query_vector
        from vlmkit.search.search import search_one, search_words
        from vlmkit.search.words import WordQuery, find_words, finder

        if by == "words":
            if not query.texts or query.images or query.like:
                raise VlmkitError("words can only be found by words", 'give text alone, or leave out by="words"')
            hits = find_words(self._reader.words(), WordQuery.of(query.words, query.words_of_minus), options.among)
            return search_words(self._reader, hits, {"query": str(query)}, options)
        vector = query_vector(query, self._reader, self._model_of(model) if query.needs_model else None)
        if by == "both" and has_fts5():
            options = replace(options, words=finder(self._reader, query.words_of_minus, options.among, silent))
        return search_one(self._reader, vector, str(query), options, query.words)

    def search_vector(self, vector: "np.ndarray", k: int = 10) -> list[Record]:
        """The `k` records nearest to a unit vector (D numbers), best first, with `rank` and `score`."""
        import numpy as np

        _a("k", k, Integral, "a number from 1", least=1)
        try:
            given = np.asarray(vector, np.float32)
        except (ValueError, TypeError) as error:
            raise VlmkitError(f"the vector is not one of numbers ({error})", "give one that an embedder made") from None
        if given.shape != (dim := self._reader.state.dim,):
            raise VlmkitError(f"the index has vectors of {dim} numbers, not {given.shape}", "give one of its model")
        (hits,) = self._reader.search(given[None], k)
        return [hit.record | {"rank": rank, "score": round(hit.score, 6)} for rank, hit in enumerate(hits, 1)]

    def vector(self, key: str) -> "np.ndarray":
        """The unit vector of the record with the id `key`, (D,) float32."""
        from vlmkit.search.query import slots_of

        return self._reader.vectors_at(slots_of(self._reader, [key]))[0]

    def records(self) -> Iterator[Record]:
        """Every record, without its embedding."""
        return (record for _, record in self._reader.records())

    def _model_of(self, model: str | Embedder | None) -> Embedder:
        from vlmkit.search.query import load_model

        if isinstance(model, Embedder):
            self._embedder = load_model(self._reader, None, lambda _: model)
        elif model is not None or self._embedder is None:
            if model is not None:
                _a("model", model, str, "a name, or what load_embedder returns")
            self._embedder = load_model(self._reader, model, load_embedder)
        return self._embedder


def _a(name: str, value: Any, kind: Any, wanted: str, *, least: int | None = None) -> Any:
    """`value`. Raises VlmkitError unless it is a `kind`, and at `least` so much."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise VlmkitError(f"{name} is {value!r}, of the type {type(value).__name__}", f"give {wanted}")
    if least is not None and value < least:
        raise VlmkitError(f"{name} is {value}", f"give {wanted}")
    return value


def _embedder(model: str | Embedder) -> Embedder:
    if isinstance(model, str):
        return load_embedder(model)
    return _a("model", model, Embedder, "a name, or what load_embedder returns")


def _chat_model(model: str | ChatModel) -> ChatModel:
    if isinstance(model, str):
        return load_chat_model(model)
    return _a("model", model, ChatModel, "a name, or what load_chat_model returns")


def _listed(values: Iterable[Any]) -> Iterable[Any]:
    """The `values`. Raises VlmkitError for a single one, whose characters would be taken for them."""
    if isinstance(values, str | bytes | os.PathLike):
        raise VlmkitError(f"{os.fspath(values)!r} is one, and a list is needed", "put it in brackets")
    return _a("the list", values, Iterable, "a list")


def _several(value: Any, name: str) -> list[Any]:
    values = [value] if isinstance(value, PATH) else _a(name, value, Iterable, "a text or a list of texts")
    return [_a(name, one, PATH, "a text or a list of texts") for one in values]


def _located(path: Path) -> str:
    from vlmkit.io.sources import is_url

    name = os.fspath(_a("a path", path, PATH, "a string or a path object"))
    return name if is_url(name) else os.path.abspath(name)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _complete(results: Iterable[Record | Failed]) -> Iterator[Record]:
    """The records. Raises VlmkitError at the first that failed."""
    for result in results:
        if isinstance(result, Failed):
            raise VlmkitError(f"{result.id}: {result.error}", result.remedy or "check the file, or leave it out")
        yield result


def _vectors(records: list[Record], model: str | Embedder, batch_size: int) -> "np.ndarray":
    import numpy as np

    from vlmkit.embed import vectors
    from vlmkit.io.inputs import Item

    _a("batch_size", batch_size, Integral, "a number, 0 for what suits", least=0)
    embedder = _embedder(model)
    found: list[np.ndarray] = []
    for result in vectors(map(Item, records), embedder, batch_size=batch_size, workers=_cores()):
        if isinstance(result, Failed):
            raise VlmkitError(f"{result.id}: {result.error}", "check the file, or leave it out")
        found.append(result[1])
    return np.stack(found) if found else np.empty((0, embedder.dim), np.float32)
