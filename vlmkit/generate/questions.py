"""Questions for a chat model: the one on the command line and its pictures, and those that records bring."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.io.choices import with_options
from vlmkit.io.inputs import Item, Reading, is_divided, is_one_picture, read_inputs
from vlmkit.io.parts import Part
from vlmkit.io.pictures import FOREIGN_MARK, MARK, RecordError, picture_names
from vlmkit.io.records import Failed, Record, unless_failed
from vlmkit.io.sources import Memory, exists, is_picture_name, reader_of
from vlmkit.io.terminal import stdin_is_terminal
from vlmkit.io.walk import looks_like_input
from vlmkit.models.boxes import EVERYTHING
from vlmkit.models.types import Reply

READ = "Read all that is written in this picture."
# The questions of records without one, by task.
DEFAULT_QUESTIONS = {"ocr": READ, "ocr-boxes": READ, "boxes": EVERYTHING}
# What the names of documents and records end in.
DOCUMENT = re.compile(
    r"\.(jsonl?|safetensors|parquet|[ct]sv|txt|md|rtf|html?|xml|epub|docx?|od[tsp]|xlsx?|pptx?|tar)", re.I
)
PATH = re.compile(r"(~?/|\.\.?/|[a-z][a-z0-9+.-]*://)\S*|\S*/\S*\*\S*", re.IGNORECASE)  # one word, and no question
SPEAKERS = {"human": "user", "user": "user", "gpt": "reply", "assistant": "reply", "system": "system"}


@dataclass(slots=True)
class ChatSample:
    """A record with the pictures that it is about: paths, URLs, their bytes, and at last what the model takes.

    `number` is its place in the input. `prompt` is the question with `<image>` where each picture stands, None for that
    of the record; `earlier` are the questions and answers before it, and `system` the instructions, of a conversation.
    `scale` is what width and height of the first picture are multiplied by to give those of the original. `declined` is
    the reply in place of the model's. `labels` are what the pictures are called in the question, where they are pages
    or frames, of which the model need not get all. With `is_shared` other samples have the same objects as pictures.
    """

    record: Record
    pictures: list[Any] = field(default_factory=list)
    number: int = 0
    prompt: str | None = None
    earlier: list[tuple[str, str]] = field(default_factory=list)
    system: str = ""
    scale: tuple[float, float] = (1, 1)
    declined: Reply | None = None
    labels: list[str] = field(default_factory=list)
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is to be answered; `single` where it is one question, whose answer is printed without a record.

    `text_only`: a question on the command line without any picture.
    """

    items: Iterable[ChatSample | Failed]
    single: bool
    text_only: bool = False


def split(arguments: list[str]) -> tuple[list[str], str | None]:
    """(INPUT, question): the last argument is the question unless it names, or looks like, an input."""
    if not arguments or _is_input(arguments[-1]):
        return arguments, None
    if not arguments[-1].strip():
        raise VlmkitError("the question is empty", "write what you want to know")
    return arguments[:-1], arguments[-1]


def _is_input(argument: str) -> bool:
    """Whether something is at `argument`, or it looks like the name of what should be there."""
    if argument == "-" or exists(argument) or argument.endswith("/") or PATH.fullmatch(argument):
        return True
    name = argument.partition("#")[0]  # of a page or a moment
    if is_picture_name(name) or looks_like_input(name) or reader_of(name) is not None:
        return True
    return DOCUMENT.fullmatch(os.path.splitext(name)[1]) is not None


def to_ask(
    inputs: list[str],
    question: str | None,
    how: Reading,
    default: str | None = None,
    *,
    each: bool = False,
    further: Sequence[str] = (),
) -> Conversation:
    """Pictures named in INPUT are one question; what folders, tar files and records hold is one question each.

    A document or film counts as one picture, with `each` as a folder of its pages or frames. `question` replaces that
    of records, `default` stands in where there is none, and `further` ones are asked after it. Raises VlmkitError for
    a missing path and for pictures without a question.
    """
    for word in inputs if question is not None else []:
        if not _is_input(word):
            remedy = 'check the name, and put the question in quotes: vlmkit ask photo.jpg "what is this?"'
            raise VlmkitError(f"{word}: no such file or folder", remedy)
    parts = list(_parts(inputs, how, together=not each))
    if not parts and question is not None and inputs in ([], ["-"]):
        sample = ChatSample({"id": question})
        return Conversation(_with_question([sample], [question], None), single=True, text_only=True)
    if not parts and not inputs and stdin_is_terminal():
        raise VlmkitError("nothing to ask", 'name pictures and a question: vlmkit ask photo.jpg "what is this?"')
    named = [item for is_named, items in parts if is_named for item in items]
    if question is None and default is None and (named or any(os.path.isdir(x) or is_divided(x) for x in inputs)):
        raise _no_question()
    streams = [items for is_named, items in parts if not is_named]
    samples = chain(_joined(named) if named else [], _samples(chain.from_iterable(streams), each))
    asked = _with_question(_numbered(samples), [question, *further], default)
    return Conversation(asked, single=not (streams or further))


def to_caption(inputs: list[str], how: Reading) -> Conversation:
    """One picture each, in the order of INPUT."""
    parts = list(_parts(inputs, how))
    if not parts and not inputs:
        read_inputs(inputs, how)  # raises VlmkitError at a terminal
    items = chain.from_iterable(items for _, items in parts)
    return Conversation(
        _numbered(map(unless_failed(to_sample), items)), single=[is_named for is_named, _ in parts] == [True]
    )


def _parts(inputs: list[str], how: Reading, together: bool = False) -> Iterator[tuple[bool, Iterator[Item | Failed]]]:
    """The items of each INPUT, and whether it is a single picture; an empty standard input is left out.

    With `together` a document or film is one, too.
    """
    how = replace(how, puts_off_fields=True)  # to_sample reads them, of parts that are asked about together nobody
    if inputs:
        if " " in inputs[-1] and not exists(inputs[-1]):
            raise VlmkitError(f"{inputs[-1]}: no such file or folder", "check the name, or end a question with ?")
        read_inputs(inputs, how)  # raises VlmkitError for a missing path, before anything is read
    for path in inputs or ([] if stdin_is_terminal() else ["-"]):
        items = read_inputs([path], how)
        if path != "-":
            yield is_one_picture(path) or (together and is_divided(path)), items
        elif (first := next(items, None)) is not None:
            piped = isinstance(first, Item) and isinstance(first.source, Memory)
            yield piped, chain([first], items)


def to_sample(item: Item) -> ChatSample | Failed:
    """`item` with its pictures; a record with `images` is about all of them."""
    item.complete()
    try:
        names = picture_names(item.record)
    except RecordError as error:
        return Failed.of(item.record, error, error.remedy)
    if item.source is not None and len(names) < 2:
        return ChatSample(item.record, [item.source])
    return ChatSample(item.record, [*names])


def _samples(items: Iterable[Item | Failed], each: bool) -> Iterator[ChatSample | Failed]:
    """A sample for each item; without `each` one for all pages or frames of a file."""
    for file, parts in groupby(items, lambda item: None if each else _file_of(item)):
        if file is None:
            yield from map(unless_failed(to_sample), parts)
        else:
            yield from _joined(list(parts))


def _file_of(item: Item | Failed) -> str | None:
    """The file of which an item is a part."""
    if isinstance(item, Item) and isinstance(item.source, Part):
        return item.record["image"].rpartition("#")[0]
    return None


def _joined(items: list[Item | Failed]) -> Iterator[ChatSample | Failed]:
    """One question about all of `items`; if one of them cannot be read, there is none.

    About a film or document that is damaged there is one, of what could be read of it, and what could not fails.
    """
    found = [item for item in items if isinstance(item, Item)]
    failed = [item for item in items if isinstance(item, Failed)]
    files = [_file_of(item) for item in found]
    if unread := next((one for one in failed if one.image not in files), None):
        yield unread
        return
    yield to_sample(found[0]) if len(found) == 1 else _together(found, files)
    yield from failed


def _together(found: list[Item], files: list[str | None]) -> ChatSample:
    """One question about pictures, and those that are parts of `files`."""
    names = [item.record["id"] for item in found]
    called = dict.fromkeys(file or name for file, name in zip(files, names, strict=True))
    pictures = [item.source or item.record["image"] for item in found]
    labels = [_label(item, len(called) > 1) for item in found] if any(files) else []
    return ChatSample({"id": " ".join(called), "images": names}, pictures, labels=labels)


def _label(item: Item, several: bool) -> str:
    """What a picture is called among pages and frames, with its file where they are of `several`."""
    name = os.path.basename(_file_of(item) or item.record["id"])
    if not isinstance(item.source, Part):
        return name
    return f"{name}, {item.source.label}" if several else item.source.label


def _numbered(items: Iterable[ChatSample | Failed]) -> Iterator[ChatSample | Failed]:
    for number, item in enumerate(items):
        if isinstance(item, ChatSample):
            item.number = number
        yield item


def _with_question(
    items: Iterable[ChatSample | Failed], questions: Sequence[str | None], default: str | None
) -> Iterator[ChatSample | Failed]:
    """Each sample with each question."""
    count = len(questions)
    for item in items:
        if isinstance(item, Failed):
            yield item
            continue
        for place, question in enumerate(questions):
            try:
                one = replace(item, number=count * item.number + place, is_shared=count > 1)
                yield _asked(one, question, default)
            except RecordError as error:
                yield Failed.of(item.record, error, error.remedy)


def _asked(sample: ChatSample, question: str | None, default: str | None) -> ChatSample:
    """`sample` with its question, and with the conversation before it. Raises RecordError."""
    record = sample.record
    system, earlier, last = _conversation(record.get("conversations") or [])
    own = record.get("question") or last or default
    found = own if question is None else question
    if not isinstance(found, str) or not found.strip():
        if sample.number == 0 and record.keys() <= {"id", "image"}:  # a picture from a list, and so are the others
            raise _no_question()
        raise RecordError("no question", 'give it a "question", or name one for all')
    # What a question on the command line replaces had these options; boxes and texts are sought without.
    prompt = with_options(record, found) if question is None and default is None else found
    if MARK not in found and isinstance(own, str):  # the pictures of the question that this one replaces
        prompt = "\n".join([MARK] * own.count(MARK) + [prompt])
    earlier, prompt = _marked(earlier, prompt, len(sample.pictures))
    record = {"id": " ".join(picture_names(record)) or found} | record | {"question": found}
    return replace(sample, record=record, prompt=prompt, earlier=earlier, system=system)


def _marked(earlier: list[tuple[str, str]], prompt: str, pictures: int) -> tuple[list[tuple[str, str]], str]:
    """The texts with as many marks as pictures; where there is none, the pictures stand before the first text."""
    texts = [*(text for text, _ in earlier), prompt]
    marks = sum(text.count(MARK) for text in texts)
    if marks > pictures or (not pictures and any(map(FOREIGN_MARK.search, texts))):
        count = f" (marks: {marks}, pictures: {pictures})" if pictures else ""
        remedy = f'name it in "image", or remove the {MARK} mark'
        raise RecordError(f"the picture of an {MARK} mark is missing{count}", remedy)
    if 0 < marks < pictures:
        what = f"{pictures} pictures, but {marks} {MARK} mark{'s' * (marks > 1)}"
        raise RecordError(what, "write as many marks as pictures, or none")
    if not marks and earlier:
        (first, answer), *rest = earlier
        return [("\n".join([MARK] * pictures + [first]), answer), *rest], prompt
    return earlier, prompt


def _conversation(value: Any) -> tuple[str, list[tuple[str, str]], str]:
    """(system text, questions and answers, last question) of LLaVA's `conversations`. Raises RecordError.

    The answer to the last question is left out, as it is asked again.
    """
    turns = value if isinstance(value, list) else [value]
    said = [(turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None) for turn in turns]
    speakers = [SPEAKERS.get(str(speaker)) for speaker, _ in said]
    texts = [text for _, text in said if isinstance(text, str)]
    system = texts.pop(0) if speakers[:1] == ["system"] and texts else ""
    speakers = speakers[1:] if speakers[:1] == ["system"] else speakers
    alternate = (["user", "reply"] * len(speakers))[: len(speakers)]
    if speakers != alternate or len(texts) != len(speakers):
        raise RecordError("malformed conversations, human and gpt do not alternate", "check the record")
    if any(MARK in text for text in texts[1::2]):
        raise RecordError(f"malformed conversations, {MARK} in a reply", "check the record")
    last = (len(texts) - 1) // 2 * 2
    pairs = list(zip(texts[:last:2], texts[1:last:2], strict=True))
    return system, pairs, texts[last] if texts else ""


def _no_question() -> VlmkitError:
    return VlmkitError("no question about the pictures", 'write one after them: vlmkit ask photo.jpg "what is this?"')
