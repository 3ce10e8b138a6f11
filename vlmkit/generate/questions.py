"""Questions for a chat model: the one on the command line and its pictures, and those that records bring."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.io.inputs import Item, Reading, is_one_picture, read_inputs
from vlmkit.io.records import Failed, Record, unless_failed
from vlmkit.io.sources import Memory, exists, is_picture_name, reader_of
from vlmkit.io.terminal import stdin_is_terminal
from vlmkit.models.boxes import EVERYTHING

# The questions of records without one, by task.
DEFAULT_QUESTIONS = {"ocr": "Read all that is written in this picture.", "boxes": EVERYTHING}
RECORD_SUFFIXES = (".jsonl", ".json", ".safetensors")


@dataclass(slots=True)
class ChatSample:
    """A record with the pictures that it is about: paths, URLs, their bytes, and at last what the model takes.

    `number` is its place in the input.
    """

    record: Record
    pictures: list[Any] = field(default_factory=list)
    number: int = 0


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is to be answered; `single` where it is one question, whose answer is printed without a record."""

    items: Iterable[ChatSample | Failed]
    single: bool


def split(arguments: list[str]) -> tuple[list[str], str | None]:
    """(INPUT, question): the last argument is the question unless it names, or looks like, an input."""
    if not arguments or _is_input(arguments[-1]):
        return arguments, None
    if not arguments[-1].strip():
        raise VlmkitError("the question is empty", "write what you want to know")
    return arguments[:-1], arguments[-1]


def _is_input(argument: str) -> bool:
    if argument == "-" or exists(argument) or argument.lower().endswith(RECORD_SUFFIXES):
        return True
    return is_picture_name(argument) or reader_of(argument) is not None


def to_ask(inputs: list[str], question: str | None, how: Reading, default: str | None = None) -> Conversation:
    """Pictures named in INPUT are one question; what folders, tar files and records hold is one question each.

    `question` replaces that of records, `default` stands in where there is none. Raises VlmkitError
    for a missing path and for pictures without a question.
    """
    parts = list(_parts(inputs, how))
    if not parts and question is not None and inputs in ([], ["-"]):
        return Conversation([ChatSample({"id": question, "question": question})], single=True)
    if not parts and not inputs and stdin_is_terminal():
        raise VlmkitError("nothing to ask", 'name pictures and a question: vlmkit ask photo.jpg "what is this?"')
    named = [item for is_named, items in parts if is_named for item in items]
    if question is None and default is None and (named or any(map(os.path.isdir, inputs))):
        raise _no_question()
    streams = [items for is_named, items in parts if not is_named]
    samples = chain([_joined(named)] if named else [], map(unless_failed(to_sample), chain.from_iterable(streams)))
    return Conversation(_with_question(_numbered(samples), question, default), single=not streams)


def to_caption(inputs: list[str], how: Reading) -> Conversation:
    """One picture each, in the order of INPUT."""
    parts = list(_parts(inputs, how))
    if not parts and not inputs:
        read_inputs(inputs, how)  # raises VlmkitError at a terminal
    items = chain.from_iterable(items for _, items in parts)
    return Conversation(
        _numbered(map(unless_failed(to_sample), items)), single=[is_named for is_named, _ in parts] == [True]
    )


def _parts(inputs: list[str], how: Reading) -> Iterator[tuple[bool, Iterator[Item | Failed]]]:
    """The items of each INPUT, and whether it is a single picture; an empty standard input is left out."""
    if inputs:
        read_inputs(inputs, how)  # raises VlmkitError for a missing path, before anything is read
    for path in inputs or ([] if stdin_is_terminal() else ["-"]):
        items = read_inputs([path], how)
        if path != "-":
            yield is_one_picture(path), items
        elif (first := next(items, None)) is not None:
            piped = isinstance(first, Item) and isinstance(first.source, Memory)
            yield piped, chain([first], items)


def to_sample(item: Item) -> ChatSample | Failed:
    """`item` with its picture; a record with `images` is about all of them."""
    image, images = item.record.get("image"), item.record.get("images")
    if images:
        if not isinstance(images, list) or not all(isinstance(one, str) for one in images):
            return Failed.of(item.record, "images is not a list of paths")
        return ChatSample(item.record, images)
    if item.source is not None:
        return ChatSample(item.record, [item.source])
    if image is None or isinstance(image, str):
        return ChatSample(item.record, [] if image is None else [image])
    return Failed.of(item.record | {"image": None}, "image is not a path")


def _joined(items: list[Item | Failed]) -> ChatSample | Failed:
    """One question about all of `items`; if one of them cannot be read, there is none."""
    samples: list[ChatSample] = []
    for sample in map(unless_failed(to_sample), items):
        if isinstance(sample, Failed):
            return sample
        samples.append(sample)
    if len(samples) == 1:
        return samples[0]
    names = [sample.record["id"] for sample in samples]
    pictures = [picture for sample in samples for picture in sample.pictures]
    return ChatSample({"id": " ".join(names), "images": names}, pictures)


def _numbered(items: Iterable[ChatSample | Failed]) -> Iterator[ChatSample | Failed]:
    for number, item in enumerate(items):
        if isinstance(item, ChatSample):
            item.number = number
        yield item


def _with_question(
    items: Iterable[ChatSample | Failed], question: str | None, default: str | None
) -> Iterator[ChatSample | Failed]:
    for item in items:
        if isinstance(item, Failed):
            yield item
            continue
        own = item.record.get("question") or _first_turn(item.record) or default
        found = own if question is None else question
        if isinstance(found, str) and found.strip():
            yield replace(item, record={"id": found} | item.record | {"question": found})
        elif item.number == 0 and item.record.keys() <= {"id", "image"}:  # a picture from a list, and so are the others
            raise _no_question()
        else:
            yield Failed.of(item.record, "no question", 'give it a "question", or name one for all')


def _first_turn(record: Record) -> object:
    """The first question in `conversations`."""
    turns = record.get("conversations")
    dicts = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    return next((turn.get("value") for turn in dicts if turn.get("from") in ("human", "user")), None)


def _no_question() -> VlmkitError:
    return VlmkitError("no question about the pictures", 'write one after them: vlmkit ask photo.jpg "what is this?"')
