"""The interface of models: two base classes, and the data that they exchange with the commands.

A package adds a model by an entry point whose name is the model's name and whose value is a class:

    [project.entry-points."vlmkit.embedders"]       # or "vlmkit.chat_models"
    colors = "my_package:Colors"

    class Colors(Embedder):  # `vlmkit embed -m colors`
        dim = 3

        def __init__(self, checkpoint, hardware):
            pass

        def preprocess(self, image):
            return np.asarray(image.resize((8, 8)), np.float32) / 255  # (8, 8, 3)

        def embed_images(self, pictures):
            means = pictures.mean((1, 2))
            return means / np.linalg.norm(means, axis=1, keepdims=True)

        def embed_texts(self, texts): ...

Classes are called with a `vlmkit.models.resolve.Checkpoint` and a `Hardware`. They raise VlmkitError for errors that
the user can correct. A class may have a method `fingerprint() -> str`, equal for equal models; else the version of
its package is used.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, runtime_checkable

from vlmkit.errors import VlmkitError
from vlmkit.io.pictures import MARK
from vlmkit.io.records import loads
from vlmkit.io.terminal import warn
from vlmkit.models.batching import BatchSize
from vlmkit.models.texts import context_of, count_cut, count_tokens, has_meaning, unknown_words

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    import tokenizers
    from PIL.Image import Image

NAMED_WORDS = 20  # that one line names
ENDPOINT = "openai:"  # begins the name of a model that an endpoint serves


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and how models run.

    `device` auto, cpu, cuda or mps; `threads` None for all cores; `precision` fp32, bf16, fp16 or int8, None for what
    the model's name says, else fp32.
    """

    device: str = "auto"
    threads: int | None = None
    precision: str | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether `device` is the CPU. That `auto` is it is known without PyTorch where no driver of a GPU runs."""
        drivers = (*Path("/dev").glob("nvidia[0-9]*"), *filter(Path.exists, map(Path, ("/dev/kfd", "/dev/dxg"))))
        return self.device == "cpu" or (self.device == "auto" and sys.platform == "linux" and not drivers)


class Model:
    """`identity` is `name@` and the fingerprint of weights and preprocessing; the loader sets it, and `load_arguments`,
    with which another process loads the same model. `device` is where it runs, `batch` how many pictures, texts or
    requests it takes at once.
    """

    identity: str
    load_arguments: tuple[Any, ...]
    device: str = "cpu"

    @cached_property
    def batch(self) -> BatchSize:
        return BatchSize()


class Embedder(Model, ABC):
    """A dual encoder: pictures and texts as unit vectors in one space.

    `dim` is D, `size` the side in pixels that pictures are scaled to, `logit_scale` the factor by which cosines are
    multiplied before a softmax gives probabilities, `precisions` those of `Hardware.precision` that it knows.
    `starts_quickly`: it is there for a text or two, so the time to open it counts more than that to run it.
    """

    dim: int
    size: int = 224
    logit_scale: float = 100.0
    precisions: Collection[str] = ("fp32",)
    starts_quickly = False
    _cut = 0  # texts that were too long

    @abstractmethod
    def preprocess(self, image: "Image") -> "np.ndarray":
        """One RGB picture as the array that `embed_images` takes a stack of. Runs in several threads."""

    @abstractmethod
    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        """N preprocessed pictures -> N x D float32, L2-normalised."""

    @abstractmethod
    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        """N texts -> N x D float32, L2-normalised."""

    @property
    def text_tokenizer(self) -> "tokenizers.Tokenizer | None":
        """What makes tokens of texts, and cuts them to the context of the model; None where there is no such one."""
        return None

    def unknown_words(self, texts: list[str]) -> list[str]:
        """The words in `texts` that the model has no token for: to it they are all the same."""
        return unknown_words(self.text_tokenizer, texts) if self.text_tokenizer else []

    def count_tokens(self, texts: list[str]) -> tuple[int, int]:
        """The tokens of `texts` that the model reads, 0 if it does not say, and how many texts are cut to fit."""
        return count_tokens(self.text_tokenizer, texts) if self.text_tokenizer else (0, 0)

    def knows_nothing_of(self, text: str) -> bool:
        """Whether the model has no token for any word of `text`, so that its vector is that of every such text."""
        rest = text
        for word in self.unknown_words([text]):
            rest = rest.replace(word, " ", 1)
        return rest != text and not any(map(has_meaning, rest))

    def embed_user_texts(self, texts: list[str]) -> "np.ndarray":
        """`embed_texts` for what a user wrote: unknown words are named, and those texts counted that are too long."""
        new = [word for word in dict.fromkeys(self.unknown_words(texts)) if word not in self._named_words]
        if new and len(self._named_words) < NAMED_WORDS:
            more = ", …" if len(new) > NAMED_WORDS else ""
            warn(f"the model does not know {', '.join(new[:NAMED_WORDS])}{more}: use words of a language that it knows")
        self._named_words.update(new)
        if self.text_tokenizer:
            self._cut += count_cut(self.text_tokenizer, texts)
        return self.embed_texts(texts)

    def tell_cut_texts(self) -> None:
        """How many of the texts embedded so far were too long, on standard error."""
        if self._cut and self.text_tokenizer:
            warn_of_cut(self._cut, context_of(self.text_tokenizer), "embedded")
        self._cut = 0

    @cached_property
    def _named_words(self) -> set[str]:
        return set()


def warn_of_cut(count: int, context: int, what: str) -> None:
    """Tell that of so many texts only the beginnings were `what`."""
    those = "1 text is" if count == 1 else f"{count} texts are"
    beginning = "its beginning is" if count == 1 else "their beginnings are"
    warn(f"{those} longer than the {context} tokens that the model reads: only {beginning} {what}, shorten the rest")


@dataclass(frozen=True, slots=True)
class CaptionPreset:
    """The prompt and the decoding with which a model writes a caption of some length; see `Sampling`."""

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
PROMPTLESS_CAPTIONS = {  # for models that describe a picture when the prompt is empty
    "short": CaptionPreset("", 20, beams=3, length_penalty=0.0),
    "normal": CaptionPreset("", 40, beams=3),
    "long": CaptionPreset("", 60, beams=3, length_penalty=2.0),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen: greedily at temperature 0, with beams, or at random.

    `top_p`: only among the most probable tokens whose probabilities add up to it (Holtzman and others, 2020). `beams`
    above 1 at temperature 0: beam search; scores are divided by length ** `length_penalty`. `clip_rerank_weight`: the
    weight of the cosine of picture and text beside the score of a finished beam, in models that have both (mini).
    `flip_augment`: features are averaged over a picture and its mirror image, in models that can (mini).
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

    In `prompt` and those of `earlier`, the conversation before, `<image>` is the place of a picture if there are as
    many as pictures; else these stand before the text. `start` is how the reply begins; it is part of the answer.
    `labels` say what each picture is, where they are pages or frames, of which the last ones may be left out.
    `number` is that of the request in its run, so that what is random does not depend on batches. `task` is answer,
    boxes, ocr, ocr-boxes (with the boxes of the lines), or raw: to continue the prompt as it stands. The reply is JSON
    of the JSON Schema `schema`, where the model supports that.
    """

    prompt: str = ""
    pictures: Sequence[Any] = ()
    system: str = ""
    start: str = ""
    number: int = 0
    task: str = "answer"
    schema: dict[str, Any] | None = None
    earlier: Sequence[Turn] = ()
    labels: Sequence[str] = ()

    @property
    def labelled_prompt(self) -> str:
        """`prompt` with the places of pictures that have labels, for models that are `interleaved`."""
        shown = [f"{label}: {MARK}" for label in self.labels] if MARK not in self.prompt else []
        return "\n".join([*shown, self.prompt])

    def first(self, count: int) -> "Request":
        """About the first `count` pictures alone, which must have labels."""
        return replace(self, pictures=self.pictures[:count], labels=self.labels[:count])

    def all_pictures(self) -> list[Any]:
        """All pictures, those of the earlier conversation first."""
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
    """A reply without its end token; `finish` is stop, or length where --max-tokens cut it; `tokens` were generated.

    `boxes` is None unless the request was for boxes; `note` is what the user should know about them.
    `reasoning` is what the model thought aloud, which is not part of `text`; `confidence` (0 to 1) is None where the
    model gives none. `prompt_tokens` are those of the request with its pictures, 0 where the model does not say.
    """

    text: str
    finish: str
    tokens: int
    boxes: list[Box] | None = None
    note: str = ""
    reasoning: str = ""
    confidence: float | None = None
    prompt_tokens: int = 0

    def failure(self) -> "RequestError | None":
        """Why this is no answer, if nothing can be read in it."""
        if any(c.isprintable() and not c.isspace() for c in self.text):
            return None
        if self.finish == "length":
            return RequestError("cut off before the answer began", "raise --max-tokens, as the model may think first")
        what = "the model thought, but gave no answer" if self.reasoning else "the model said nothing"
        return RequestError(what, "ask again, name another model, or raise --max-tokens")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with what else goes into its record, and the milliseconds that it took.

    `chosen` and `rejected` are the better and the worse of two answers, if their scores differ.
    """

    answer: Answer
    fields: dict[str, Any] = field(default_factory=dict)
    ms: float = 0.0
    chosen: str | None = None
    rejected: str | None = None


class RequestError(Exception):
    """This one request cannot be answered; the message says why, `remedy` what to do."""

    def __init__(self, why: str, remedy: str = "rephrase the question or use another model") -> None:
        super().__init__(why)
        self.remedy = remedy


class UnsuitableModel(VlmkitError):
    """The model does not do what it was asked for, whatever the request."""


class ChatModel(Model, ABC):
    """Answers requests. `size` is the side in pixels to which pictures may be reduced, None for full resolution.

    `interleaved` models take pictures at the places of `<image>` in a prompt, and the earlier turns of a conversation;
    others get all pictures at once, and a prompt without marks. `single_image` models were trained on one picture each.
    Of pages and frames they get `most_pictures`, None for any number. `captions` holds a preset for each of short,
    normal, long; `tasks` are those of `Request.task` that it does, and attention where it has a method
    `attention(request, answer) -> AttentionMaps`.

    `caution` is what people are told of a model whose answers are not to be relied on, with a better one. An answer
    whose confidence is lower than `unsure_below` is more often wrong than right. `needs_picture`: it cannot tell
    anything of a text alone.
    """

    size: int | None = None
    interleaved: bool = False
    single_image: bool = False
    most_pictures: int | None = None
    caution: str = ""
    unsure_below: float = 0.0
    needs_picture: bool = False
    captions: Mapping[str, CaptionPreset] = CAPTIONS
    tasks: Collection[str] = ("answer",)

    def preprocess(self, image: "Image") -> Any:
        """One RGB picture in the form that `Request.pictures` holds. Runs in several threads."""
        return image

    @abstractmethod
    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        """One answer for each request, in order."""

    def usage(self) -> dict[str, int]:
        """What its answers took, for the end of a run: numbers by what they count."""
        return {}

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | RequestError:
        """The same for one request, without beams; `say` is called with each piece of text as it is generated."""
        (answer,) = self.answer([request], sampling)
        if isinstance(answer, Answer):
            say(answer.text)
        return answer


@runtime_checkable
class RemoteModel(Protocol):
    """A chat model of an endpoint. `batch` is the number of requests that may be under way at a time."""

    interleaved: bool

    def submit(self, request: Request, sampling: Sampling) -> "Future[Answer | RequestError]":
        """Send a request without waiting. Raises VlmkitError for errors that every request would have."""


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """The URL of an endpoint, None for the default one, the options of each request, how many are sent a minute at
    most, 0 for as many as can be, and the environment variable that holds the key.
    """

    base_url: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    rpm: float = 0.0
    key_variable: str = "OPENAI_API_KEY"

    @classmethod
    def of(
        cls, base_url: str | None, options: Sequence[str], rpm: float = 0.0, key_variable: str | None = None
    ) -> "EndpointOptions":
        """`options` are KEY=VALUE each, VALUE JSON or else a string. Raises VlmkitError."""
        given: dict[str, Any] = {}
        for option in options:
            key, equals, value = option.partition("=")
            if not key or not equals:
                raise VlmkitError(f"--option {option} has no value", "write KEY=VALUE, such as detail=high")
            try:
                given[key] = loads(value.encode())
            except ValueError:
                given[key] = value
        return cls(base_url, given, rpm, key_variable or cls().key_variable)
