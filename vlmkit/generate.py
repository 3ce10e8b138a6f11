"""caption and ask: records with their pictures go to a chat model in batches, and come back with what it said."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from itertools import islice
from typing import Any

from vlmkit.alt_text import alt_text
from vlmkit.images import ahead, open_picture
from vlmkit.models.batch import BatchSize
from vlmkit.models.chat import Answer, ChatModel, HostedModel, Request, Sampling, Talker, Unanswerable
from vlmkit.questions import Asked
from vlmkit.records import Failed, Record
from vlmkit.sources import Bytes, PictureError
from vlmkit.tars import locate
from vlmkit.urls import FETCHERS, Web, is_url

HELD = 4  # answers of a hosted model that may wait for an earlier one, for each request under way


def ask(
    items: Iterable[Asked | Failed],
    talker: Talker,
    sampling: Sampling,
    *,
    system: str = "",
    batch_size: int,
    workers: int,
    allow_private: bool = False,
) -> Iterator[Record | Failed]:
    """Each record with `answer` to its `question`, and `answer_model`, in input order."""

    def request(ready: Asked) -> Request:
        question = ready.record["question"].replace("<image>", " ").strip()  # the mark of LLaVA's data
        return Request(question, ready.pictures, system=system, number=ready.number)

    answered = _answered(items, talker.model, request, sampling, batch_size, workers, allow_private)
    for found in answered:
        if isinstance(found, Failed):
            yield found
        else:
            record, answer = found
            yield record | {"answer": " ".join(answer.text.split()), "answer_model": talker.identity}


def caption(
    items: Iterable[Asked | Failed],
    talker: Talker,
    sampling: Sampling,
    *,
    length: str = "normal",
    start: str = "",
    batch_size: int,
    workers: int,
    allow_private: bool = False,
) -> Iterator[Record | Failed]:
    """Each record with `caption`, which begins with `start`, and `caption_model`, in input order."""
    style = talker.model.captions[length]

    def request(ready: Asked) -> Request:
        return Request(style.prompt, ready.pictures, start=start, number=ready.number)

    pictures = (_one_picture(item) for item in items)
    answered = _answered(pictures, talker.model, request, sampling, batch_size, workers, allow_private)
    sentences = None if length == "long" else 1
    for found in answered:
        if isinstance(found, Failed):
            yield found
        else:
            record, answer = found
            text = alt_text(answer.text, sentences=sentences, cut=answer.finish == "length", guided=bool(start))
            yield record | {"caption": text, "caption_model": talker.identity}


def caption_sampling(model: ChatModel, length: str, sampling: Sampling, max_tokens: int | None) -> Sampling:
    """`sampling` as the model is told to caption: with beams, unless words are chosen at random."""
    style = model.captions[length]
    beams = 1 if sampling.temperature > 0 else style.beams
    return replace(
        sampling, max_tokens=max_tokens or style.max_tokens, beams=beams, length_penalty=style.length_penalty
    )


def _one_picture(item: Asked | Failed) -> Asked | Failed:
    if isinstance(item, Failed) or len(item.pictures) == 1:
        return item
    return Failed.of(item.record, "several pictures, captions are for one" if item.pictures else "no picture")


def _answered(
    items: Iterable[Asked | Failed],
    model: ChatModel,
    request: Callable[[Asked], Request],
    sampling: Sampling,
    batch_size: int,
    workers: int,
    allow_private: bool,
) -> Iterator[tuple[Record, Answer] | Failed]:
    """Each record and the model's answer to its request, in input order.

    Pictures by URL are fetched ahead, then all are decoded ahead in threads; at most two batches wait.
    """

    def fetch(item: Asked | Failed) -> Asked | Failed:
        return item if isinstance(item, Failed) else _each(item, lambda picture: _fetched(picture, web))

    def prepare(item: Asked | Failed) -> Asked | Failed:
        return item if isinstance(item, Failed) else _each(item, lambda picture: _opened(picture, model))

    sizes = BatchSize(batch_size) if batch_size else model.batch
    with Web(allow_private=allow_private) as web:
        fetched = ahead(items, fetch, FETCHERS, depth=2 * FETCHERS)
        prepared = ahead(fetched, prepare, workers, depth=2 * sizes.largest)
        if isinstance(model, HostedModel):
            yield from _by_turns(prepared, model, request, sampling, sizes.size)
            return
        while batch := list(islice(prepared, sizes.size)):
            ready = [entry for entry in batch if isinstance(entry, Asked)]
            answers = iter(model.answer([request(entry) for entry in ready], sampling) if ready else [])
            for entry in batch:
                yield entry if isinstance(entry, Failed) else _paired(entry, next(answers))


def _by_turns(
    prepared: Iterable[Asked | Failed],
    model: HostedModel,
    request: Callable[[Asked], Request],
    sampling: Sampling,
    at_once: int,
) -> Iterator[tuple[Record, Answer] | Failed]:
    """Each record and its answer, in input order, with `at_once` requests under way as long as there are so many."""
    waiting: deque[tuple[Asked, Future[Answer | Unanswerable]] | Failed] = deque()
    under_way: set[Future[Answer | Unanswerable]] = set()
    try:
        for entry in prepared:
            if isinstance(entry, Failed):
                waiting.append(entry)
            else:
                future = model.submit(request(entry), sampling)
                waiting.append((entry, future))
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


def _is_ready(turn: tuple[Asked, Future[Answer | Unanswerable]] | Failed) -> bool:
    return isinstance(turn, Failed) or turn[1].done()


def _result(turn: tuple[Asked, Future[Answer | Unanswerable]] | Failed) -> tuple[Record, Answer] | Failed:
    return turn if isinstance(turn, Failed) else _paired(turn[0], turn[1].result())


def _paired(entry: Asked, answer: Answer | Unanswerable) -> tuple[Record, Answer] | Failed:
    return Failed.of(entry.record, answer) if isinstance(answer, Unanswerable) else (entry.record, answer)


def _each(item: Asked, work: Callable[[Any], Any]) -> Asked | Failed:
    """`item` with `work` done on each picture; its failure names the picture where there are several."""
    done = []
    for picture in item.pictures:
        try:
            done.append(work(picture))
        except PictureError as error:
            named = isinstance(picture, str) and len(item.pictures) > 1
            return Failed.of(item.record, f"{picture}: {error}" if named else error)
    return replace(item, pictures=done)


def _fetched(picture: str | Bytes, web: Web) -> str | Bytes:
    return web.fetch(picture) if isinstance(picture, str) and is_url(picture) else picture


def _opened(picture: str | Bytes, model: ChatModel) -> Any:
    image, _, _ = open_picture(locate(picture) if isinstance(picture, str) else picture, model.size)
    try:
        return model.preprocess(image)
    except MemoryError:
        raise PictureError("not enough memory to scale it") from None
