"""A caption as alt text: what a model said, as one sentence that does not begin with "a picture of".

caption and ask: records with their pictures go to a chat model in batches, and come back with what it said.

--sidecar: a caption as `photo.txt` beside `photo.jpg`, as trainers of image models read them.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmkit.generate.constitution import Constitution, judged
from vlmkit.generate.questions import ChatSample
from vlmkit.generate.schema import conforming
from vlmkit.io.http import FETCHERS, HttpClient
from vlmkit.io.images import ahead, open_picture
from vlmkit.io.records import Failed, Record
from vlmkit.io.sources import Bytes, PictureError, is_url, open_source
from vlmkit.io.terminal import Output
from vlmkit.models.batching import BatchSize
from vlmkit.models.boxes import EVERYTHING
from vlmkit.models.types import Answer, ChatModel, RemoteModel, Reply, Request, RequestError, Sampling

if TYPE_CHECKING:
    from vlmkit.models.chat.attention import AttentionMaps


KIND = r"(?:image|picture|photo|photograph|snapshot)"
OPENING = re.compile(
    rf"(?:(?:an?|the|this) {KIND} of|(?:the|this) {KIND} (?:is of|shows|depicts|features)|in (?:the|this) {KIND},?"
    r"|(?:there|here) (?:is|are))\s+",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[a-z0-9)\"']{2}[.!?])\s+")  # not behind "St." and "Dr."
LOOSE = re.compile(r"\s+([.,;:!?]|'s\b)")  # punctuation set apart, as in tokenised training captions


def alt_text(text: str, *, sentences: int | None = 1, cut: bool = False, guided: bool = False) -> str:
    """`text` with a capital and a full stop, at most `sentences` of it. Where it was `cut`, without its last words if
    a whole sentence stands before them, and otherwise with no full stop. What opens it is left out unless it was
    `guided` there.
    """
    text = LOOSE.sub(r"\1", " ".join(text.split()))
    if not guided:
        text = OPENING.sub("", text, count=1) if OPENING.match(text) else text
    parts = SENTENCE_END.split(text)
    cut = cut and not parts[-1].endswith((".", "!", "?"))
    if cut and len(parts) > 1:
        parts.pop()
        cut = False
    text = " ".join(parts[:sentences]).rstrip(" ,;:-")
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if cut or text.endswith((".", "!", "?")) else ".")


Answering = Callable[[list[Request], Sampling], list[Reply | RequestError]]
HELD = 4  # answers of a hosted model that may wait for an earlier one, for each request under way


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What is wanted of the answers beside the question.

    `task`: answer, boxes (where in the picture what is asked for is) or ocr (what is written there). `say` hears each
    piece of text as soon as it is there; `looked` gets where the words of an answer looked; `pair` the better and the
    worse of two answers, as `train prefer` reads them.
    """

    system: str = ""
    task: str = "answer"
    schema: dict[str, Any] | None = None
    constitution: Constitution | None = None
    stats: bool = False
    say: Callable[[str], None] | None = None
    looked: Callable[["AttentionMaps"], None] | None = None
    pair: Callable[[Record], None] | None = None


def ask(
    items: Iterable[ChatSample | Failed],
    model: ChatModel,
    sampling: Sampling,
    wishes: GenerateOptions = GenerateOptions(),
    *,
    batch_size: int,
    workers: int,
    allow_private: bool = False,
) -> Iterator[Record | Failed]:
    """Each record with `answer` to its `question`, `answer_model`, `finish` and what else is wished, in input order."""

    def request(ready: ChatSample) -> Request:
        question = ready.record["question"].replace("<image>", " ").strip()  # the mark of LLaVA's data
        return Request(question, ready.pictures, wishes.system, number=ready.number, task=wishes.task)

    answer = _answering(model, wishes)
    if wishes.task == "boxes":
        items = map(_one_picture, items)
    for found in _answered(items, model, answer, request, sampling, batch_size, workers, allow_private):
        if isinstance(found, Failed):
            yield found
            continue
        record, reply = found
        if wishes.pair and reply.chosen is not None:
            keys = {key: record[key] for key in ("id", "image", "images", "question") if key in record}
            wishes.pair(keys | {"chosen": reply.chosen, "rejected": reply.rejected})
        text = reply.answer.text if wishes.schema else " ".join(reply.answer.text.split())
        made = {"answer": text, "answer_model": model.identity}
        stats = {"ms": round(reply.ms, 1), "tokens": reply.answer.tokens} if wishes.stats else {}
        yield record | made | {"finish": reply.answer.finish} | reply.fields | stats


def _answering(model: ChatModel, wishes: GenerateOptions) -> Answering | None:
    """How `model` answers requests, where more is wished than its answers."""

    def answer(requests: list[Request], sampling: Sampling) -> list[Reply | RequestError]:
        if wishes.constitution:
            return judged(model, requests, sampling, wishes.constitution)
        if wishes.schema:
            return conforming(model, requests, sampling, wishes.schema)
        if wishes.say:
            return [_reply(model.stream(request, sampling, wishes.say)) for request in requests]
        assert wishes.looked
        pairs = zip(requests, model.answer(requests, sampling), strict=True)
        return [_shown(model, *pair, wishes.looked) for pair in pairs]

    return answer if wishes.constitution or wishes.schema or wishes.say or wishes.looked else None


def _shown(
    model: Any, request: Request, answer: Answer | RequestError, looked: Callable[["AttentionMaps"], None]
) -> Reply | RequestError:
    """The reply, after where it looked was given to `looked`."""
    try:
        if isinstance(answer, Answer):
            looked(model.attention(request, answer.text))
    except RequestError as error:
        return error
    return _reply(answer)


def _reply(answer: Answer | RequestError) -> Reply | RequestError:
    if isinstance(answer, RequestError):
        return answer
    return Reply(answer, {} if answer.boxes is None else {"boxes": answer.boxes})


def caption(
    items: Iterable[ChatSample | Failed],
    model: ChatModel,
    sampling: Sampling,
    *,
    length: str = "normal",
    start: str = "",
    boxes: Sampling | None = None,
    batch_size: int,
    workers: int,
    allow_private: bool = False,
) -> Iterator[Record | Failed]:
    """Each record with `caption`, which begins with `start`, and `caption_model`, in input order.

    With `boxes`, by which they are sought, also the `boxes` of every object.
    """
    style = model.captions[length]

    def request(ready: ChatSample) -> Request:
        return Request(style.prompt, ready.pictures, start=start, number=ready.number)

    pictures = (_one_picture(item) for item in items)
    answer = partial(_located, model, boxes) if boxes else None
    answered = _answered(pictures, model, answer, request, sampling, batch_size, workers, allow_private)
    sentences = None if length == "long" else 1
    for found in answered:
        if isinstance(found, Failed):
            yield found
        else:
            record, reply = found
            cut = reply.answer.finish == "length"
            text = alt_text(reply.answer.text, sentences=sentences, cut=cut, guided=bool(start))
            if text:
                yield record | {"caption": text, "caption_model": model.identity} | reply.fields
            else:
                yield Failed.of(record, "the model said nothing", "name another model, or raise --max-tokens")


def _located(
    model: ChatModel, how: Sampling, requests: list[Request], sampling: Sampling
) -> list[Reply | RequestError]:
    """What the model says of each picture, with the boxes of all that it finds there."""
    sought = [replace(request, prompt=EVERYTHING, start="", task="boxes") for request in requests]
    pairs = zip(model.answer(requests, sampling), model.answer(sought, how), strict=True)
    return [
        said if isinstance(said, RequestError) else found if isinstance(found, RequestError)
        else Reply(said, {"boxes": found.boxes or []})
        for said, found in pairs
    ]  # fmt: skip


def caption_sampling(model: ChatModel, length: str, sampling: Sampling, max_tokens: int | None) -> Sampling:
    """`sampling` as the model is told to caption: with beams, unless words are chosen at random."""
    style = model.captions[length]
    return replace(
        sampling,
        max_tokens=max_tokens or style.max_tokens,
        beams=1 if sampling.temperature > 0 else style.beams,
        length_penalty=style.length_penalty,
        clip_rerank_weight=style.clip_rerank_weight,
        flip_augment=style.flip_augment,
    )


def _one_picture(item: ChatSample | Failed) -> ChatSample | Failed:
    if isinstance(item, Failed) or len(item.pictures) == 1:
        return item
    return Failed.of(item.record, "several pictures, this is for one" if item.pictures else "no picture")


def _answered(
    items: Iterable[ChatSample | Failed],
    model: ChatModel,
    answer: Answering | None,
    request: Callable[[ChatSample], Request],
    sampling: Sampling,
    batch_size: int,
    workers: int,
    allow_private: bool,
) -> Iterator[tuple[Record, Reply] | Failed]:
    """Each record and the reply to its request, by `answer` or the model's own, in input order.

    Pictures by URL are fetched ahead, then all are decoded ahead in threads; at most two batches wait.
    """

    def fetch(item: ChatSample | Failed) -> ChatSample | Failed:
        return item if isinstance(item, Failed) else _each(item, lambda picture: _fetched(picture, web))

    def prepare(item: ChatSample | Failed) -> ChatSample | Failed:
        return item if isinstance(item, Failed) else _each(item, lambda picture: opened(picture, model))

    sizes = BatchSize(batch_size) if batch_size else model.batch
    with HttpClient(allow_private=allow_private) as web:
        fetched = ahead(items, fetch, FETCHERS, depth=2 * FETCHERS)
        prepared = ahead(fetched, prepare, workers, depth=2 * sizes.largest)
        if answer is None and isinstance(model, RemoteModel):
            yield from _complete_in_order(prepared, model, request, sampling, sizes.size)
            return
        while batch := list(islice(prepared, sizes.size)):
            ready = [entry for entry in batch if isinstance(entry, ChatSample)]
            start = time.perf_counter()
            requests = [request(entry) for entry in ready]
            replies = iter(answer(requests, sampling) if answer else map(_reply, model.answer(requests, sampling)))
            ms = 1000 * (time.perf_counter() - start) / max(len(ready), 1)
            for entry in batch:
                yield entry if isinstance(entry, Failed) else _paired(entry, next(replies), ms)


def _complete_in_order(
    prepared: Iterable[ChatSample | Failed],
    model: RemoteModel,
    request: Callable[[ChatSample], Request],
    sampling: Sampling,
    at_once: int,
) -> Iterator[tuple[Record, Reply] | Failed]:
    """Each record and its answer, in input order, with `at_once` requests under way as long as there are so many."""
    waiting: deque[PendingRequest | Failed] = deque()
    under_way: set[Future[Answer | RequestError]] = set()
    try:
        for entry in prepared:
            if isinstance(entry, Failed):
                waiting.append(entry)
            else:
                future = model.submit(request(entry), sampling)
                waiting.append(PendingRequest(entry, future, time.perf_counter()))
                under_way.add(future)
            if len(under_way) >= at_once:
                under_way = wait(under_way, return_when=FIRST_COMPLETED).not_done
            while waiting and (_is_ready(waiting[0]) or len(waiting) >= HELD * at_once):
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for future in under_way:
            future.cancel()


class PendingRequest(NamedTuple):
    """A record whose question is under way since `start`."""

    entry: ChatSample
    future: Future[Answer | RequestError]
    start: float


def _is_ready(turn: PendingRequest | Failed) -> bool:
    return isinstance(turn, Failed) or turn.future.done()


def _result(turn: PendingRequest | Failed) -> tuple[Record, Reply] | Failed:
    if isinstance(turn, Failed):
        return turn
    reply = _reply(turn.future.result())
    return _paired(turn.entry, reply, 1000 * (time.perf_counter() - turn.start))


def _paired(entry: ChatSample, reply: Reply | RequestError, ms: float) -> tuple[Record, Reply] | Failed:
    if isinstance(reply, RequestError):
        return Failed.of(entry.record, reply, reply.remedy)
    return entry.record, replace(reply, ms=ms)


def _each(item: ChatSample, work: Callable[[Any], Any]) -> ChatSample | Failed:
    """`item` with `work` done on each picture; its failure names the picture where there are several."""
    done = []
    for picture in item.pictures:
        try:
            done.append(work(picture))
        except PictureError as error:
            named = isinstance(picture, str) and len(item.pictures) > 1
            return Failed.of(item.record, f"{picture}: {error}" if named else error)
    return replace(item, pictures=done)


def _fetched(picture: str | Bytes, web: HttpClient) -> str | Bytes:
    return web.fetch(picture) if isinstance(picture, str) and is_url(picture) else picture


def opened(picture: str | Bytes, model: ChatModel) -> Any:
    """The picture at a path as `model` takes it. Raises PictureError."""
    image, _, _ = open_picture(open_source(picture) if isinstance(picture, str) else picture, model.size)
    try:
        return model.preprocess(image)
    except MemoryError:
        raise PictureError("not enough memory to scale it") from None


def beside(image: object) -> Path | None:
    """Where the caption of a picture goes; None where the picture is not a file of its own."""
    path = Path(image) if isinstance(image, str) else None
    return path.with_suffix(".txt") if path and path.is_file() else None


def without_caption(items: Iterable[ChatSample | Failed]) -> Iterator[ChatSample | Failed]:
    """Those of `items` that have no sidecar yet."""
    for item in items:
        path = beside(item.record.get("image")) if isinstance(item, ChatSample) else None
        if path is None or not os.path.lexists(path):
            yield item


def written(results: Iterable[Record | Failed], *, force: bool) -> Iterator[Record | Failed]:
    """`results`, after each caption was written beside its picture; never over a file that was there, but by force."""
    made: set[Path] = set()
    for result in results:
        if isinstance(result, Failed):
            yield result
            continue
        path = beside(result.get("image"))
        if path is None:
            yield Failed.of(result, "no file of its own, so no place for a sidecar")
        elif path in made or (os.path.lexists(path) and not force):
            yield Failed.of(result, f"{path} is there already", "" if path in made else "--force writes it anew")
        else:
            made.add(path)
            with Output(str(path)) as out:
                out.write(f"{result['caption']}\n".encode())
            yield result
