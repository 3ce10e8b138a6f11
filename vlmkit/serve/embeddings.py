"""/v1/embeddings and /v2/embed: texts and pictures as vectors, in the forms of OpenAI, infinity, llama.cpp, vLLM, Jina
and Cohere.
"""

import base64
import uuid
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from vlmkit.models.types import Embedder
from vlmkit.serve.errors import ApiError
from vlmkit.serve.json import JsonResponse
from vlmkit.serve.models import Loaded
from vlmkit.serve.operations import MODEL, PICTURE, STRING, Operation, Schema, object_of, unused, warned
from vlmkit.serve.parts import Part, content_part, content_parts
from vlmkit.serve.service import Service
from vlmkit.serve.vectors import part_vectors, read_texts

if TYPE_CHECKING:
    import numpy as np

MAX_INPUTS = 2048
DATA_URI = "data:image/"
CONTENT: Schema = {"anyOf": [STRING, {"type": "array", "items": {"type": ["object", "string"]}, "minItems": 1}]}
MESSAGES: Schema = {"type": "array", "items": object_of(["content"], role=STRING, content=CONTENT), "minItems": 1}
SCHEMA = object_of(
    model=MODEL,
    input={
        "description": "Texts, pictures, {content: parts}, {text} or {image}, one or a list of at most 2,048.",
        "type": ["string", "array", "object"],
    },
    messages=MESSAGES,
    modality={"enum": ["text", "image", None], "description": "What the strings of `input` are."},
    encoding_format={"enum": ["float", "base64", None]},
    dimensions={"type": ["integer", "null"], "minimum": 1},
    user={"type": ["string", "null"]},
)
STRING_LIST: Schema = {"type": ["array", "null"], "items": STRING, "maxItems": MAX_INPUTS}
COHERE = object_of(
    model=MODEL,
    texts=STRING_LIST,
    images={"type": ["array", "null"], "items": PICTURE, "maxItems": MAX_INPUTS},
    inputs={"type": ["array", "null"], "items": object_of(["content"], content=CONTENT), "maxItems": MAX_INPUTS},
    input_type={"enum": ["search_document", "search_query", "classification", "clustering", "image", None]},
    embedding_types={"type": ["array", "null"], "items": STRING},
    output_dimension={"type": ["integer", "null"], "minimum": 1},
    max_tokens={"type": ["integer", "null"], "minimum": 1},
    truncate={"enum": ["NONE", "START", "END", None]},
)


async def embeddings(service: Service, body: dict[str, Any]) -> Response:
    """One vector for each input; the parts of one input add up to one unit vector."""
    inputs = _inputs(body)
    name = service.models.name_for("embed", body.get("model"))
    async with service.models.use("embed", name) as loaded:
        _check_dimensions(loaded.model, body.get("dimensions"), "dimensions")
        vectors = await _embedded(service, loaded, inputs)
        tokens, notes = await read_texts(service, name, loaded.model, _texts(inputs))
        as_text = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": i, "embedding": _base64(vector) if as_text else vector}
            for i, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        reply = {"object": "list", "data": data, "model": loaded.model.identity, "usage": usage}
        return JsonResponse(warned(reply, [*notes, *unused(body, SCHEMA)]))


async def cohere_embed(service: Service, body: dict[str, Any]) -> Response:
    """The same in Cohere's form."""
    kinds = body.get("embedding_types") or ["float"]
    if other := [kind for kind in kinds if kind not in ("float", "base64")]:
        what = f"embeddings of the type {other[0][:100]} are not made here: ask for float or base64"
        raise ApiError(400, what, code="invalid_value", param="embedding_types")
    texts, images, mixed = (body.get(key) or [] for key in ("texts", "images", "inputs"))
    inputs = [[Part(False, text, f"texts.{i}")] for i, text in enumerate(texts)]
    inputs += [[Part(True, image, f"images.{i}")] for i, image in enumerate(images)]
    inputs += [content_parts(entry["content"], f"inputs.{i}.content") for i, entry in enumerate(mixed)]
    if sum(map(bool, (texts, images, mixed))) != 1:
        raise ApiError(400, "give one of texts, images and inputs", code="invalid_value", param="texts")
    name = service.models.name_for("embed", body.get("model"))
    async with service.models.use("embed", name) as loaded:
        _check_dimensions(loaded.model, body.get("output_dimension"), "output_dimension")
        vectors = await _embedded(service, loaded, inputs)
        tokens, notes = await read_texts(service, name, loaded.model, _texts(inputs))
        made = {kind: vectors if kind == "float" else list(map(_base64, vectors)) for kind in kinds}
        units = {"input_tokens": tokens, "images": sum(part.is_picture for parts in inputs for part in parts)}
        meta = {"api_version": {"version": "2"}, "billed_units": units}
        reply = {"id": str(uuid.uuid4()), "embeddings": made, "texts": texts, "response_type": "embeddings_by_type"}
        meta = warned(meta, [*notes, *unused(body, COHERE)])
        return JsonResponse(reply | {"meta": meta, "model": loaded.model.identity})


def _inputs(body: dict[str, Any]) -> list[list[Part]]:
    """The parts of each input, whatever the form. Raises ApiError."""
    if (messages := body.get("messages")) is not None:
        return [[p for i, one in enumerate(messages) for p in content_parts(one["content"], f"messages.{i}.content")]]
    given, modality = body.get("input"), body.get("modality")
    entries = given if isinstance(given, list) else [given]
    if given is None or not entries:
        raise ApiError(400, "there is no input", code="missing_input", param="input")
    if any(isinstance(entry, int | list) for entry in entries):
        what = "input holds numbers: tokens of another model mean nothing here, send the text"
        raise ApiError(400, what, code="tokens_not_supported", param="input")
    if len(entries) > MAX_INPUTS:
        raise ApiError(400, f"more than {MAX_INPUTS} inputs: send several requests", code="too_many_inputs")
    return [_input(entry, modality, f"input.{i}") for i, entry in enumerate(entries)]


def _input(entry: Any, modality: str | None, param: str) -> list[Part]:
    if isinstance(entry, str):
        is_picture = modality == "image" or (modality is None and entry[: len(DATA_URI)].lower() == DATA_URI)
        return [Part(is_picture, entry, param)]
    if isinstance(entry, dict) and "content" in entry:
        return content_parts(entry["content"], f"{param}.content")
    if isinstance(entry, dict) and "type" not in entry and {"text", "image"} <= entry.keys():
        return [content_part({key: entry[key]}, param) for key in ("text", "image")]
    return [content_part(entry, param)]


async def _embedded(service: Service, loaded: Loaded[Embedder], inputs: list[list[Part]]) -> "list[np.ndarray]":
    import numpy as np

    for part in (part for parts in inputs for part in parts):
        if not part.value:
            raise ApiError(400, f"{part.param} is empty", code="invalid_value", param=part.param)
    vectors = iter(await part_vectors(service, loaded, [part for parts in inputs for part in parts]))
    found = []
    for parts in inputs:
        total = np.sum([next(vectors) for _ in parts], axis=0)
        found.append(total if len(parts) == 1 else total / max(float(np.linalg.norm(total)), 1e-6))
    return found


def _texts(inputs: list[list[Part]]) -> list[str]:
    return [part.value for parts in inputs for part in parts if not part.is_picture]


def _check_dimensions(model: Embedder, wanted: int | None, param: str) -> None:
    if wanted not in (None, model.dim):
        what = f"the vectors of {model.identity} have {model.dim} dimensions, which cannot be cut to {wanted}"
        raise ApiError(400, what, code="invalid_value", param=param)


def _base64(vector: "np.ndarray") -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


OPERATIONS = [
    Operation("POST", "/v1/embeddings", embeddings, "Vectors of texts and pictures.", SCHEMA),
    Operation("POST", "/v2/embed", cohere_embed, "Vectors of texts and pictures, in Cohere's form.", COHERE),
]
