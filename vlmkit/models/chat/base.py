"""Models that answer questions about pictures, by name. A backend is one class in one file, imported when asked for."""

import importlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, runtime_checkable

from vlmkit.errors import VlmkitError
from vlmkit.io.records import loads
from vlmkit.models.registry import Hardware
from vlmkit.models.resolve import (
    MINI_FOLDER,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    TRANSFORMERS_TYPES,
    Checkpoint,
    MissingFile,
    full_name,
    present,
    read_json,
    transformers_weights,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmkit.models.batching import BatchSize

FAMILIES = {  # of transformers that have no chat template, by the type in their config.json
    "blip": "vlmkit.models.chat.blip:blip",
    "blip-2": "vlmkit.models.chat.blip2:Blip2",
    "instructblip": "vlmkit.models.chat.blip2:InstructBlip",
    "florence2": "vlmkit.models.chat.florence:Florence",
    "paligemma": "vlmkit.models.chat.paligemma:PaliGemma",
}
CHAT_MODELS = {
    "mini": "vlmkit.models.chat.mini:Talk",
    "transformers": "vlmkit.models.chat.transformers:ImageTextToText",
    **FAMILIES,
}
ENDPOINT = "openai:"  # begins the name of a model that an endpoint serves
PROCESSING = (
    *PROCESSOR_FILES,
    *TOKENIZER_FILES,
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "train.toml",
)
QFORMER = "qformer_tokenizer"  # a folder of InstructBLIP


@dataclass(frozen=True, slots=True)
class Sampling:
    """How words are chosen: greedily at temperature 0, with beams, or at random.

    `top_p`: only among the likeliest words that have this probability together (Holtzman and others, 2020). `beams`
    above 1 at temperature 0: beam search; scores are divided by length ** `length_penalty`. `clip_rerank_weight`: how
    much the cosine of the picture and a beam's text counts beside its score in the end, where a model has both (mini).
    `flip_augment`: pictures are seen in a mirror as well, by models that can (mini).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    clip_rerank_weight: float = 0.0
    flip_augment: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A question that was answered, with the pictures that came with it."""

    prompt: str
    pictures: Sequence[Any]
    answer: str


@dataclass(frozen=True, slots=True)
class Request:
    """A question about `pictures` (as the model's `preprocess` makes them; none for text alone).

    `start` is how the reply begins; it is part of the answer. `earlier` is the conversation before. `number` tells
    requests of one run apart, so that what is random does not depend on batches. `task` is answer, boxes or ocr. The
    reply is JSON of the JSON Schema `schema`, where the model can be held to it.
    """

    prompt: str = ""
    pictures: Sequence[Any] = ()
    system: str = ""
    start: str = ""
    number: int = 0
    task: str = "answer"
    schema: dict[str, Any] | None = None
    earlier: Sequence[Turn] = ()

    def all_pictures(self) -> list[Any]:
        """Those of the conversation before, too, in their order."""
        before = [picture for turn in self.earlier for picture in turn.pictures]
        return [*before, *self.pictures]


class Box(TypedDict):
    """Where something is, in pixels of the original: `box` [x0, y0, x1, y1], `polygon` [x0, y0, x1, y1, x2, …]."""

    label: str
    box: list[float]
    score: NotRequired[float]
    polygon: NotRequired[list[float]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply without its end mark; `finish` is stop, or length where --max-tokens cut it; `tokens` are those made.

    `boxes` is None where the request was not one for boxes.
    """

    text: str
    finish: str
    tokens: int
    boxes: list[Box] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with what else goes into its record, and the milliseconds that it took.

    `chosen` and `rejected` are the better and the worse of two answers, where there were two that differ in worth.
    """

    answer: Answer
    fields: dict[str, Any] = field(default_factory=dict)
    ms: float = 0.0
    chosen: str | None = None
    rejected: str | None = None


class RequestError(Exception):
    """This one request cannot be answered; the text says why, and `remedy` what to do."""

    def __init__(self, why: str, remedy: str = "ask in other words or another model") -> None:
        super().__init__(why)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class CaptionPreset:
    """How a model is asked for a caption of some length, and how it is told to choose words."""

    prompt: str
    max_tokens: int
    beams: int = 1
    length_penalty: float = 1.0
    clip_rerank_weight: float = 0.0
    flip_augment: bool = False


CAPTIONS = {
    "short": CaptionPreset("Describe this picture in a few words.", 24),
    "normal": CaptionPreset("Describe this picture in one sentence.", 64),
    "long": CaptionPreset("Describe this picture in detail.", 256),
}


class ChatModel(Protocol):
    """Answers requests. `size` is the side in pixels below which a picture needs no detail, None for all of it.

    `identity` is `name@` and the fingerprint of weights and preprocessing, twelve hex digits; the loader sets it.
    `captions` holds a style for each of short, normal, long; `tasks` are those of `Request.task` that it does, and
    attention where it has a method of that name (request, answer) -> Looks.
    """

    identity: str

    @property
    def device(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def batch(self) -> "BatchSize": ...
    @property
    def captions(self) -> Mapping[str, CaptionPreset]: ...
    @property
    def tasks(self) -> Collection[str]: ...

    def preprocess(self, image: "Image") -> Any:
        """One RGB picture in the form that `Request.pictures` holds. Runs in several threads."""

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        """One answer for each request, in order."""

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | RequestError:
        """The same for one request, without beams; `say` gets each piece of the text as soon as it is there."""


@runtime_checkable
class RemoteModel(Protocol):
    """What a chat model elsewhere can do besides. `batch` is how many requests it may have to answer at a time."""

    def submit(self, request: Request, sampling: Sampling) -> Future[Answer | RequestError]:
        """Ask, and do not wait for the answer. What is fatal for all requests, it raises as VlmkitError."""


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """Where a hosted model is asked, None for the usual place, and what goes along with each request."""

    base_url: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, base_url: str | None, options: Sequence[str]) -> "EndpointOptions":
        """`options` are KEY=VALUE each, VALUE JSON or else a string. Raises VlmkitError."""
        given: dict[str, Any] = {}
        for option in options:
            key, equals, value = option.partition("=")
            if not key or not equals:
                raise VlmkitError(f"--option {option} names no value", "write KEY=VALUE, such as detail=high")
            try:
                given[key] = loads(value.encode())
            except ValueError:
                given[key] = value
        return cls(base_url, given)


def load_chat_model(
    name: str,
    hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
    hosting: EndpointOptions = EndpointOptions(),
) -> ChatModel:
    """The chat model called `name`. Raises VlmkitError where the name is unknown or the files cannot be opened."""
    if name.startswith(ENDPOINT):
        from vlmkit.models.chat.endpoint import Endpoint

        endpoint = Endpoint(name, hardware, hosting)
        endpoint.identity = f"{name}@{endpoint.fingerprint}"
        return endpoint
    if hosting != EndpointOptions():
        raise VlmkitError(
            f"--base-url and --option are for models of an endpoint, which {name} is not",
            f"name one: -m {ENDPOINT}NAME",
        )
    checkpoint = find_chat_model(name)
    module, attribute = CHAT_MODELS[checkpoint.backend].split(":")
    backend = getattr(importlib.import_module(module), attribute)
    model = backend(checkpoint, hardware)
    model.identity = f"{checkpoint.name}@{checkpoint.fingerprint()}"
    return model


def find_chat_model(name: str) -> Checkpoint:
    """The chat model called `name`, not opened yet. Raises VlmkitError."""
    if name == "mini":
        return _mini(name, MINI_FOLDER)
    folder = Path(name)
    if folder.is_dir():
        folder = folder.absolute()
        known = (folder / "talk.json").is_file()
        return _mini(str(folder), folder) if known else _transformers(str(folder), folder)
    name = full_name(name)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        from vlmkit.models.resolve import snapshot

        needed = ["config.json", "model*.safetensors*", "tokenizer*", "*processor_config.json"]
        folder = snapshot(name, needed, PROCESSING)
        if read_json(folder / "config.json").get("model_type") == "instructblip":
            snapshot(name, [f"{QFORMER}/*"])
        try:
            return _transformers(name, folder)
        except MissingFile:  # a download that was cut off
            return _transformers(name, snapshot(name, needed, PROCESSING, fresh=True))
    raise VlmkitError(
        f"{name}: no such model", f"use mini, ORG/NAME of the Hub, a folder of a trained model, or {ENDPOINT}NAME"
    )


def _mini(name: str, folder: Path) -> Checkpoint:
    from vlmkit.models.chat.mini import FILES

    missing = next((file for file in FILES if not (folder / file).is_file()), None)
    if missing is not None:
        what = "this build of mini cannot talk" if name == "mini" else f"{name} is no whole model"
        raise VlmkitError(f"{what}, it has no {missing}", "name another model with -m")
    return Checkpoint(name, "mini", folder, [folder / file for file in FILES])


def _transformers(name: str, folder: Path) -> Checkpoint:
    config = folder / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else None
    if kind is None or kind in TRANSFORMERS_TYPES:
        what = f"{name} holds no model that answers" + (f", but one of type {kind}" if kind else "")
        raise VlmkitError(what, "name an image-text-to-text model of transformers, or what vlmkit train has finished")
    backend = str(kind) if str(kind) in FAMILIES else "transformers"
    processing = present(folder, [*PROCESSING, *(f"{QFORMER}/{file}" for file in TOKENIZER_FILES)])
    return Checkpoint(name, backend, folder, transformers_weights(name, folder), processing)
