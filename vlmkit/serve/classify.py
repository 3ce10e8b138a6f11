"""/v1/classify: the label that fits each picture best."""

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from vlmkit.classify import DEFAULT_TEMPLATE, best_labels, label_prompts, mean_vectors
from vlmkit.errors import VlmkitError
from vlmkit.models.types import Embedder
from vlmkit.serve.errors import ApiError
from vlmkit.serve.json import JsonResponse
from vlmkit.serve.models import Loaded
from vlmkit.serve.operations import MODEL, STRING, STRINGS, Operation, object_of, unused, warned
from vlmkit.serve.parts import MAX_CHARACTERS, Part, content_part
from vlmkit.serve.service import Service
from vlmkit.serve.vectors import part_vectors, read_texts

if TYPE_CHECKING:
    import numpy as np

MAX_PROMPTS = 4096  # labels x templates
REMEMBERED = 16  # sets of labels
SCHEMA = object_of(
    ["input", "labels"],
    model=MODEL,
    input={"type": ["string", "array", "object"], "description": "A picture, {image} or {text}; or a list of them."},
    labels={"type": "array", "items": STRING, "minItems": 1},
    template=STRINGS,
    k={"type": ["integer", "null"], "minimum": 1},
)
LabelKey = tuple[str, tuple[str, ...], tuple[str, ...]]


class LabelVectors:
    """The vectors of the sets of labels that were used last."""

    def __init__(self) -> None:
        self._known: dict[LabelKey, np.ndarray] = {}

    async def get(
        self, service: Service, loaded: Loaded[Embedder], labels: list[str], templates: list[str]
    ) -> "np.ndarray":
        """L x D unit vectors."""
        import numpy as np

        key = loaded.model.identity, tuple(labels), tuple(templates)
        if (found := self._known.pop(key, None)) is None:
            prompts = [Part(False, prompt, "labels") for prompt in label_prompts(labels, templates)]
            found = mean_vectors(np.stack(await part_vectors(service, loaded, prompts)), labels)
        self._known[key] = found
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return found


KNOWN = LabelVectors()


async def classify(service: Service, body: dict[str, Any]) -> Response:
    """One entry for each input, with its best label and the probabilities of all."""
    labels = list(dict.fromkeys(label.strip() for label in body["labels"] if label.strip()))
    given = body.get("template", DEFAULT_TEMPLATE)
    templates = given if isinstance(given, list) else [given]
    length = len(templates) * sum(map(len, labels)) + len(labels) * sum(map(len, templates))
    if not labels or not templates or len(labels) * len(templates) > MAX_PROMPTS or length > MAX_CHARACTERS:
        what = f"give from 1 to {MAX_PROMPTS} labels of {MAX_CHARACTERS} characters, counted once for each template"
        raise ApiError(400, what, code="invalid_value", param="labels")
    entries = body["input"] if isinstance(body["input"], list) else [body["input"]]
    parts = [_part(entry, f"input.{i}") for i, entry in enumerate(entries)]
    name = service.models.name_for("embed", body.get("model"))
    async with service.models.use("embed", name) as loaded:
        try:
            targets = await KNOWN.get(service, loaded, labels, templates)
        except VlmkitError as error:
            raise ApiError(400, str(error), code="invalid_value", param="template") from None
        vectors = await part_vectors(service, loaded, parts)
        texts = [*labels, *(part.value for part in parts if not part.is_picture)]
        _, notes = await read_texts(service, name, loaded.model, texts)
        k = int(body.get("k") or len(labels))
        best = [best_labels(vector, labels, targets, loaded.model.logit_scale, k) for vector in vectors]
        data = [{"index": i, "label": found[0]["label"], "labels": found} for i, found in enumerate(best)]
        reply = {"object": "list", "data": data, "model": loaded.model.identity}
        return JsonResponse(warned(reply, [*notes, *unused(body, SCHEMA)]))


def _part(entry: Any, param: str) -> Part:
    return Part(True, entry, param) if isinstance(entry, str) else content_part(entry, param)


OPERATIONS = [Operation("POST", "/v1/classify", classify, "The labels that fit pictures best.", SCHEMA)]
