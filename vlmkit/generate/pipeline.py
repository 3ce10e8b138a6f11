"""caption and ask: records with their pictures go to a chat model in batches, and come back with what it answers."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from vlmkit.generate.alt_text import alt_text
from vlmkit.generate.best_match import Select
from vlmkit.generate.constitution import Constitution, answer_by_constitution
from vlmkit.generate.gate import Gate
from vlmkit.generate.prepare import preprocessed, scaled, with_pictures
from vlmkit.generate.question_list import Once
from vlmkit.generate.questions import ChatSample
from vlmkit.generate.reading import has_question, known_text, one_picture, some_picture
from vlmkit.generate.remote import Completed, complete_in_order
from vlmkit.generate.replies import with_reply
from vlmkit.generate.schema import answer_by_schema
from vlmkit.io.executor import BatchStage, FetchStage, Lazy, Stage, map_ordered
from vlmkit.io.pictures import LEADING_MARKS, MARK
from vlmkit.io.records import Failed, Record, name_of, unless_failed
from vlmkit.io.sources import Bytes, is_url
from vlmkit.io.terminal import warn
from vlmkit.models.boxes import EVERYTHING
from vlmkit.models.load import load_chat_model
from vlmkit.models.types import Answer, ChatModel, RemoteModel, Reply, Request, RequestError, Sampling, Turn

if TYPE_CHECKING:
    from vlmkit.models.chat.attention import AttentionMaps


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The options of a run of `ask` or `caption`.

    `prompt` is asked of every picture in place of its record's question, `start` is how each answer begins. `task`:
    answer, raw (what follows the text), boxes (where in the picture what is asked for is), ocr (what is written there)
    or ocr-boxes (and where). `known_text`: what records and text layers say is written there is not read. `boxes`: find
    every object, too, with this sampling. `on_text` is called with each piece of text as soon as it is there,
    `on_attention` with the attention maps of an answer, `on_pair` with the better and the worse of two answers, as
    `train prefer` reads them.
    """

    system: str = ""
    task: str = "answer"
    prompt: str | None = None
    start: str = ""
    schema: dict[str, Any] | None = None
    constitution: Constitution | None = None
    boxes: Sampling | None = None
    stats: bool = False
    known_text: bool = False
    on_text: Callable[[str], None] | None = None
    on_attention: Callable[["AttentionMaps"], None] | None = None
    on_pair: Callable[[Record], None] | None = None

    def request(self, sample: ChatSample, interleaved: bool) -> Request:
        """The request for `sample`; see `ChatModel.interleaved`."""
        question = sample.record.get("question", "") if sample.prompt is None else sample.prompt
        texts = [*(text for text, _ in sample.earlier), question if self.prompt is None else self.prompt]
        pictures, prompt = sample.pictures, texts[-1] if self.task == "raw" else _unmarked(texts[-1])
        earlier: list[Turn] = []
        if interleaved and self.task not in ("boxes", "raw"):
            rest = iter(pictures)
            for text, (_, answer) in zip(texts, sample.earlier, strict=False):
                earlier.append(Turn(_after_leading_marks(text), list(islice(rest, text.count(MARK))), answer))
            pictures, prompt = list(rest), _after_leading_marks(texts[-1])
        system = self.system or sample.system
        return Request(
            prompt, pictures, system, self.start, sample.number, self.task, earlier=earlier, labels=sample.labels
        )

    def mode(self) -> str:
        """The entry of ANSWERERS for these options."""
        needed = {
            "constitution": self.constitution,
            "schema": self.schema,
            "stream": self.on_text,
            "attention": self.on_attention,
            "boxes": self.boxes,
        }
        return next((mode for mode, value in needed.items() if value), "plain")


def _unmarked(text: str) -> str:
    return text.replace(MARK, " ").strip()


def _after_leading_marks(text: str) -> str:
    """`text` without marks if all of them stand before it, where pictures without marks go."""
    rest = LEADING_MARKS.sub("", text)
    return text.strip() if MARK in rest else rest.strip()


def limits(sample: ChatSample, model: ChatModel) -> Iterator[str]:
    """What the model does not do for `sample`, told once a run."""
    name = name_of(model.identity)
    if sample.earlier and not model.interleaved:
        yield f"{name} answers single questions: earlier turns of conversations are left out"
    if "answer" not in model.tasks and has_question(sample):
        yield f"{name} reads what is written and answers no questions: those of records are not asked"
    if len(sample.pictures) > 1 and model.single_image:
        yield f"{name} was trained on single pictures: its answers about several are guesses"
    if len(sample.pictures) > 1 and not model.interleaved and MARK in _after_leading_marks(sample.prompt or ""):
        yield f"{name} gets all pictures before the question, not where its {MARK} marks stand"


Replies = list[Reply | RequestError]


def answer_plain(model: ChatModel, requests: list[Request], sampling: Sampling, _: GenerateOptions) -> Replies:
    return [_reply(answer) for answer in model.answer(requests, sampling)]


def answer_streaming(model: ChatModel, requests: list[Request], sampling: Sampling, options: Any) -> Replies:
    return [_reply(model.stream(request, sampling, options.on_text)) for request in requests]


def answer_with_attention(model: Any, requests: list[Request], sampling: Sampling, options: Any) -> Replies:
    """Passes the attention maps to `on_attention` before the answer."""
    replies: Replies = []
    for request, answer in zip(requests, model.answer(requests, sampling), strict=True):
        try:
            if isinstance(answer, Answer):
                options.on_attention(model.attention(request, answer.text))
            replies.append(_reply(answer))
        except RequestError as error:
            replies.append(error)
    return replies


def answer_with_boxes(model: ChatModel, requests: list[Request], sampling: Sampling, options: Any) -> Replies:
    """An answer, and the boxes of everything in the picture."""
    everything = [replace(request, prompt=EVERYTHING, start="", task="boxes") for request in requests]
    replies: Replies = []
    pairs = zip(model.answer(requests, sampling), model.answer(everything, options.boxes), strict=True)
    for answer, found in pairs:
        if isinstance(answer, RequestError) or isinstance(found, RequestError):
            replies.append(answer if isinstance(answer, RequestError) else found)  # type: ignore[arg-type]
        else:
            replies.append(Reply(replace(answer, note=found.note), {"boxes": found.boxes or []}))
    return replies


ANSWERERS: dict[str, Callable[[ChatModel, list[Request], Sampling, Any], Replies]] = {
    "plain": answer_plain,
    "stream": answer_streaming,
    "schema": lambda model, requests, sampling, options: answer_by_schema(model, requests, sampling, options.schema),
    "constitution": lambda model, requests, sampling, options: answer_by_constitution(
        model, requests, sampling, options.constitution
    ),
    "attention": answer_with_attention,
    "boxes": answer_with_boxes,
}


@dataclass
class Fetch(FetchStage):
    """ChatSample -> ChatSample with the pictures that its URLs lead to."""

    _once: Any = None  # a Once, between load and close

    def load(self) -> None:
        super().load()
        self._once = Once()

    def __call__(self, sample: ChatSample) -> ChatSample | Failed:
        def fetched(picture: str | Bytes) -> str | Bytes:
            return self._web.fetch(picture) if isinstance(picture, str) and is_url(picture) else picture

        return with_pictures(sample, self._once(fetched, sample))


@dataclass
class Decode(Stage):
    """ChatSample -> ChatSample with its pictures as the model takes them."""

    model: Lazy[ChatModel]
    workers: int = 1
    depth: int = 2
    known_text: bool = False  # in place of a picture, where there is one
    _once: Any = None  # a Once, between load and close

    def load(self) -> None:
        self._once = Once()

    def __call__(self, sample: ChatSample) -> ChatSample | Failed:
        if sample.declined:
            return sample

        def decoded(picture: str | Bytes) -> tuple[Any, tuple[float, float]]:
            text = known_text(sample, picture) if self.known_text else None
            return (text, (1, 1)) if text else preprocessed(picture, self.model())

        done = with_pictures(sample, self._once(decoded, sample))
        if isinstance(done, Failed) or not done.pictures:
            return done
        pictures, scales = zip(*done.pictures, strict=True)
        return replace(done, pictures=list(pictures), scale=scales[0])


@dataclass
class Respond(BatchStage):
    """ChatSample -> (record, reply). A `batch_size` of 0 is what suits the model and its device."""

    model: Lazy[ChatModel]
    sampling: Sampling
    options: GenerateOptions
    batch_size: int = 0
    told: set[str] = field(default_factory=set)

    def size(self) -> int:
        return self.batch_size or self.model().batch.size

    def __call__(self, samples: list[ChatSample]) -> list[tuple[Record, Reply] | Failed]:
        for limit in {limit for sample in samples for limit in limits(sample, self.model())} - self.told:
            self.told.add(limit)
            warn(limit)
        start = time.perf_counter()
        requests = [self.options.request(one, self.model().interleaved) for one in samples if not one.declined]
        answerer = ANSWERERS[self.options.mode()]
        replies = iter(answerer(self.model(), requests, self.sampling, self.options) if requests else ())
        ms = 1000 * (time.perf_counter() - start) / max(len(samples), 1)
        task = self.options.task
        return [_result(sample, sample.declined or next(replies), ms, task) for sample in samples]


def ask(
    items: Iterable[ChatSample | Failed],
    model: ChatModel,
    sampling: Sampling,
    options: GenerateOptions = GenerateOptions(),
    *,
    batch_size: int,
    workers: int,
    allow_private: bool = False,
) -> Iterator[Record | Failed]:
    """Each record with `answer` to its `question`, `answer_model`, `finish` and what `options` add, in input order.

    What the model thought aloud goes into `reasoning`. A reply in which nothing can be read fails its record.
    """

    def to_record(found: tuple[Record, Reply]) -> Record:
        record, reply = found
        if options.on_pair and reply.chosen is not None:
            keys = {key: record[key] for key in ("id", "image", "images", "question") if key in record}
            options.on_pair(keys | {"chosen": reply.chosen, "rejected": reply.rejected})
        reads = options.task in ("ocr", "ocr-boxes")
        keeps_lines = options.schema or reads or options.task == "raw"
        text = reply.answer.text if keeps_lines else " ".join(reply.answer.text.split())
        made = {"answer": text, "answer_model": model.identity} | ({"ocr": text} if reads else {})
        return with_reply(record, made, reply, sampling.max_tokens, options.stats)

    if options.task in ("boxes", "ocr-boxes"):
        items = map(unless_failed(one_picture), items)
    elif options.task == "ocr":
        items = map(unless_failed(some_picture), items)
    replies = replies_in_order(items, model, sampling, options, batch_size, workers, allow_private)
    return map(unless_failed(to_record), replies)


def caption(
    items: Iterable[ChatSample | Failed],
    model: ChatModel,
    sampling: Sampling,
    *,
    length: str = "normal",
    start: str = "",
    boxes: Sampling | None = None,
    stats: bool = False,
    batch_size: int,
    workers: int,
    allow_private: bool = False,
) -> Iterator[Record | Failed]:
    """Each record with `caption`, which begins with `start`, `caption_model` and `finish`, in input order.

    With `boxes`, by which they are sought, also the `boxes` of every object; with `stats` `ms` and `tokens`.
    """
    options = GenerateOptions(prompt=model.captions[length].prompt, start=start, boxes=boxes)

    def to_record(found: tuple[Record, Reply]) -> Record | Failed:
        record, reply = found
        sentences, cut = None if length == "long" else 1, reply.answer.finish == "length"
        text = alt_text(reply.answer.text, sentences=sentences, cut=cut, guided=bool(start))
        failure = replace(reply.answer, text=text).failure()
        if failure is not None:
            return Failed.of(record, failure, failure.remedy)
        made = {"caption": text, "caption_model": model.identity}
        return with_reply(record, made, reply, sampling.max_tokens, stats)

    pictures = map(unless_failed(one_picture), items)
    replies = replies_in_order(pictures, model, sampling, options, batch_size, workers, allow_private)
    return map(unless_failed(to_record), replies)


def caption_sampling(model: ChatModel, length: str, sampling: Sampling, max_tokens: int | None) -> Sampling:
    """`sampling` with what the model's preset for captions says: with beams, unless words are chosen at random."""
    preset = model.captions[length]
    return replace(
        sampling,
        max_tokens=max_tokens or preset.max_tokens,
        beams=1 if sampling.temperature > 0 else preset.beams,
        length_penalty=preset.length_penalty,
        clip_rerank_weight=preset.clip_rerank_weight,
        flip_augment=preset.flip_augment,
    )


def replies_in_order(
    items: Iterable[ChatSample | Failed],
    model: ChatModel,
    sampling: Sampling,
    options: GenerateOptions,
    batch_size: int,
    workers: int,
    allow_private: bool,
) -> Iterator[tuple[Record, Reply] | Failed]:
    """Each record and the reply to its request, in input order; at most two batches of pictures wait."""
    pipeline = stages(model, sampling, options, batch_size, workers, allow_private)
    if options.mode() == "plain" and isinstance(model, RemoteModel):
        samples = map_ordered(pipeline[:-1], items)

        def submit(sample: ChatSample) -> Future[Answer | RequestError]:
            return model.submit(options.request(sample, model.interleaved), sampling)

        def to_result(done: Completed) -> tuple[Record, Reply] | Failed:
            return _result(done.sample, _reply(done.answer), done.ms, options.task)

        return map(unless_failed(to_result), complete_in_order(samples, submit, batch_size or model.batch.size))
    return map_ordered(pipeline, items)


def stages(
    model: ChatModel,
    sampling: Sampling,
    options: GenerateOptions,
    batch_size: int,
    workers: int,
    allow_private: bool,
) -> list[Stage]:
    """The pipeline of `ask` and `caption`."""
    lazy = Lazy(load_chat_model, *model.load_arguments, value=model)
    depth = 2 * (batch_size or model.batch.largest)
    heads = options.constitution.heads if options.constitution else []
    gate = [Gate(heads, model.load_arguments[1])] if heads else []
    opening = [Fetch(allow_private), Select(lazy), *gate, Decode(lazy, workers, depth, options.known_text)]
    return [*opening, Respond(lazy, sampling, options, batch_size)]


def _reply(answer: Answer | RequestError) -> Reply | RequestError:
    if isinstance(answer, RequestError):
        return answer
    return Reply(answer, {} if answer.boxes is None else {"boxes": answer.boxes})


def _result(sample: ChatSample, reply: Reply | RequestError, ms: float, task: str) -> tuple[Record, Reply] | Failed:
    if isinstance(reply, RequestError):
        return Failed.of(sample.record, reply, reply.remedy)
    failure = reply.answer.failure() if task == "answer" else None  # there may be no text in it, or nothing of a kind
    if failure is not None:
        return Failed.of(sample.record, failure, failure.remedy)
    if "boxes" in reply.fields:
        boxes = [scaled(box, sample.scale) for box in reply.fields["boxes"]]
        reply = replace(reply, fields=reply.fields | {"boxes": boxes})
    if reply.answer.note:
        warn(f"{sample.record.get('id')}: {reply.answer.note}")
    return sample.record, replace(reply, ms=ms)
