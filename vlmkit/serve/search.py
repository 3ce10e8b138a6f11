"""/v1/search: the records of the index that are nearest to a query of words and pictures."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from vlmkit.errors import VlmkitError
from vlmkit.index import Index
from vlmkit.index.near import Near, parse_near
from vlmkit.index.store import silent
from vlmkit.index.where import doubtful, parse_condition
from vlmkit.index.words import has_fts5
from vlmkit.io.records import Record, name_of
from vlmkit.models.types import Embedder
from vlmkit.search.near import nearest, with_distances
from vlmkit.search.query import combined, load_model, slots_of, weighted_text
from vlmkit.search.reference import picture_vectors, text_vectors
from vlmkit.search.search import Results, SearchOptions, search_one, search_words
from vlmkit.search.words import WordQuery, find_words, finder
from vlmkit.serve.errors import ApiError
from vlmkit.serve.json import JsonResponse
from vlmkit.serve.operations import PICTURE, STRINGS, Operation, Schema, object_of, unused, warned
from vlmkit.serve.parts import Part
from vlmkit.serve.service import Service
from vlmkit.serve.vectors import part_vectors, read_texts

if TYPE_CHECKING:
    import numpy as np

RESULTS = 10
PARTS = ("query", "image", "minus", "like")  # of a query
MOST_RESULTS = 1000
PICTURES: Schema = {"anyOf": [PICTURE, {"type": "array", "items": PICTURE, "maxItems": 256}]}
CONDITION: Schema = {"type": "string", "maxLength": 4096}
MOST_CONDITIONS = 64
VALUE: Schema = {"type": ["string", "number", "boolean", "null"], "maxLength": 4096}
SCHEMA = object_of(
    query=STRINGS | {"description": "Words, with a weight as in 2:red car; several add up."},
    image=PICTURES,
    minus=STRINGS | {"description": "Words whose meaning is subtracted."},
    like=STRINGS | {"description": "Ids of records; these are left out."},
    by={
        "enum": ["both", "meaning", "words", None],
        "description": "words finds what is written in pictures, and names.",
    },
    k={"type": ["integer", "null"], "minimum": 1, "maximum": MOST_RESULTS},
    offset={"type": ["integer", "null"], "minimum": 0, "maximum": 100_000},
    min_score={"type": ["number", "null"]},
    near={"type": ["string", "null"], "maxLength": 100, "description": "LAT,LON,KM: degrees, kilometres from there."},
    where={
        "description": "Conditions such as width>1000 that all hold, or an object of fields and their values.",
        "anyOf": [
            CONDITION,
            {"type": "array", "items": CONDITION, "maxItems": MOST_CONDITIONS},
            {"type": "object", "additionalProperties": VALUE, "maxProperties": MOST_CONDITIONS},
            {"type": "null"},
        ],
    },
)


async def search(service: Service, body: dict[str, Any]) -> Response:
    """Records with `rank` and `score`, best first."""
    conditions = _conditions(body.get("where"))
    near: Near | None = None if body.get("near") is None else valid(lambda: parse_near(body["near"]), "near")
    if near is not None:
        conditions.append(near)
    notes: list[str] = []

    def among(index: Index) -> "np.ndarray | None":
        return valid(lambda: _among(index, conditions, notes), "where") if conditions else None

    if near is not None and not any(map(body.get, PARTS)) and body.get("min_score") is None:
        offset, k = _part(body)
        found = await service.look(lambda index: nearest(index, near, among(index), offset + k))
        records, more = found.records[offset:], list[str]()
    else:
        records, more = await find(service, body, among)
        if near is not None:
            records = next(with_distances([Results("", records)], near)).records
    return JsonResponse(warned({"object": "list", "data": records}, [*unused(body, SCHEMA), *more, *notes]))


async def find(
    service: Service,
    body: dict[str, Any],
    among: Callable[[Index], "np.ndarray | None"],
    *,
    judged: bool = False,
) -> tuple[list[Record], list[str]]:
    """The records that `body` asks for in the slots `among`, and what the client should know of its words.

    `judged` ones have `relative` (see `search.reference`). Raises ApiError.
    """
    if body.get("by") == "words":
        return await _by_words(service, body, among), []
    texts, minus, images, like = (_listed(body.get(key)) for key in ("query", "minus", "image", "like"))
    if not (texts or minus or images or like) or not all(text.strip() for text in (*texts, *minus)):
        raise ApiError(400, "there is nothing to look for: give query, image or like", code="empty", param="query")
    weighted = [weighted_text(text) for text in texts] + [(-w, text) for w, text in map(weighted_text, minus)]
    parts = [Part(False, text, "query") for _, text in weighted]
    parts += [Part(True, image, f"image.{i}") for i, image in enumerate(images)]
    weights = [weight for weight, _ in weighted] + [1.0] * (len(images) + len(like))
    notes: list[str] = []
    vectors: list[np.ndarray] = []
    model: Embedder | None = None
    if parts:
        made_by = await service.look(_model_of)
        async with service.models.use("embed", name_of(made_by)) as loaded:
            model = loaded.model
            await service.look(lambda index: load_model(index, None, lambda _: loaded.model))  # checks that it fits
            vectors = await part_vectors(service, loaded, parts)
            _, notes = await read_texts(service, name_of(made_by), loaded.model, [text for _, text in weighted])

    offset, k = _part(body)

    def found(index: Index) -> list[Record]:
        import numpy as np

        slots = valid(lambda: slots_of(index, like), "like")
        rows = [*vectors, *index.vectors_at(slots)]
        vector = valid(lambda: combined(weights, np.stack(rows)), "query")
        least = -math.inf if body.get("min_score") is None else body["min_score"]
        reference = _reference(index, model if weighted else None) if judged else None
        chosen = among(index)
        words = None
        if body.get("by") != "meaning" and has_fts5():
            words = finder(index, [text for _, text in map(weighted_text, minus)], chosen, silent)
        options = SearchOptions(offset + k, chosen, frozenset(slots), least, reference=reference, words=words)
        plain = [text for _, text in map(weighted_text, texts)]
        return search_one(index, vector, " + ".join([*texts, *like]), options, plain).records[offset:]

    return await service.look(found), notes


def _part(body: dict[str, Any]) -> tuple[int, int]:
    """How many results are left out before, and how many are wanted."""
    return int(body.get("offset") or 0), int(body.get("k") or RESULTS)


async def _by_words(
    service: Service, body: dict[str, Any], among: Callable[[Index], "np.ndarray | None"]
) -> list[Record]:
    """The records that have words of `body`, without a model. Raises ApiError."""
    texts, minus = ([text for _, text in map(weighted_text, _listed(body.get(key)))] for key in ("query", "minus"))
    if not any(text.strip() for text in texts):
        raise ApiError(400, "there is nothing to look for by words: give query", code="empty", param="query")
    for name in ("image", "like", "min_score"):
        if body.get(name) not in (None, [], ""):
            raise ApiError(400, f"by words compares no vectors: leave out {name}", code="invalid_value", param=name)
    offset, k = int(body.get("offset") or 0), int(body.get("k") or RESULTS)

    def found(index: Index) -> list[Record]:
        hits = find_words(index.words(), WordQuery.of(texts, minus), among(index))
        fields = {"query": " + ".join(texts)}
        return search_words(index, hits, fields, SearchOptions(offset + k)).records[offset:]

    return await service.look(found)


def _reference(index: Index, model: Embedder | None) -> "np.ndarray":
    return picture_vectors(index) if model is None else text_vectors(model)


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _conditions(where: Any) -> list[Any]:
    if isinstance(where, dict):
        where = [f"{field}={_spelled(value)}" for field, value in where.items()]
    return valid(lambda: [parse_condition(text) for text in _listed(where)], "where")


def _spelled(value: Any) -> str:
    """A value of JSON as --where takes it."""
    if isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _among(index: Index, conditions: list[Any], notes: list[str]) -> "np.ndarray":
    among = index.where(conditions)
    notes += index.explain(unsure) if (unsure := doubtful(conditions, len(among))) else []
    return among


def _model_of(index: Index) -> str:
    if index.state.model is None:
        what = f"the index at {index.folder} does not say which model made its vectors: look in it with like"
        raise ApiError(400, what, code="no_model", param="query")
    return index.state.model


def valid(work: Any, param: str) -> Any:
    """`work()`; what is wrong with the request is its error."""
    try:
        return work()
    except VlmkitError as error:
        raise ApiError(400, str(error).removeprefix("--"), code="invalid_value", param=param) from None


OPERATIONS = [Operation("POST", "/v1/search", search, "The nearest records of the index.", SCHEMA)]
