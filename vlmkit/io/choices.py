"""The options of multiple-choice questions in records, as MMBench, MMMU, ScienceQA and ARC write them."""

import re
import string
from typing import Any

from vlmkit.io.pictures import LEADING_MARKS, RecordError
from vlmkit.io.records import Record
from vlmkit.io.values import literal_list, text_of

LETTERS = string.ascii_uppercase
FIELDS = ("options", "choices")
COLUMN = re.compile(r"(?:(?i:option|choice)[ _-]?)?([A-Z])|(?i:option|choice)[ _-]?([a-z])")
HINTS = ("hint", "context")
INSTRUCTION = "Answer with the option's letter from the given choices directly."
NUMBERED = re.compile(r"^\s*[(\[]?([A-Z])[)\].:]\s*(\S.*?)\s*$", re.MULTILINE)


def options_of(record: Record, question: str) -> dict[str, str]:
    """The texts of the options by their letters; none where the record has no options."""
    return _in_fields(record) or _lettered(dict(NUMBERED.findall(question)))


def with_options(record: Record, question: str) -> str:
    """`question` with the options of the record, unless it lists them itself, and with what was said as a hint to it.

    In the form of LLaVA's evaluations of MMBench and ScienceQA (Liu and others, 2023). Raises RecordError for more
    options than there are letters.
    """
    if any(len(literal_list(record.get(name)) or ()) > len(LETTERS) for name in FIELDS):
        raise RecordError(f"more than {len(LETTERS)} options", "ask with fewer, each has a letter")
    options = _in_fields(record)
    if not options or NUMBERED.findall(question) == list(options.items()):
        return question
    hints = [text for name in HINTS if (text := text_of(record.get(name)) or "").strip() not in ("", "nan")]
    marks = found[0] if (found := LEADING_MARKS.match(question)) else ""
    listed = [f"{letter}. {text}" for letter, text in options.items()]
    return marks + "\n".join([*hints, question[len(marks) :], *listed, INSTRUCTION])


def _in_fields(record: Record) -> dict[str, str]:
    found = next(filter(None, (_options_in(record.get(name)) for name in FIELDS)), {})
    if not found:
        columns = ((COLUMN.fullmatch(name), text_of(value)) for name, value in record.items())
        found = dict(sorted(((c[1] or c[2]).upper(), text) for c, text in columns if c and text))
    return _lettered(found)


def _lettered(found: dict[str, str]) -> dict[str, str]:
    """`found` if these are two options or more, with the letters from A on."""
    return found if list(found) == list(LETTERS[: len(found)]) and len(found) > 1 else {}


def _options_in(value: Any) -> dict[str, str]:
    """Options of a list, of a text with one a line, of an object by letters or ARC's {"text": […], "label": […]}."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), list):
            value = dict(zip(LETTERS, value["text"], strict=False))
        return {name.strip(" ().").upper(): text for name, option in value.items() if (text := text_of(option))}
    options = literal_list(value)
    if options is None:
        return dict(NUMBERED.findall(value)) if isinstance(value, str) else {}
    texts = [text_of(option) or "" for option in options]
    marked = [NUMBERED.fullmatch(text) for text in texts]
    if all(found and found[1] == letter for found, letter in zip(marked, LETTERS, strict=False)):
        texts = [found[2] for found in marked if found]
    return dict(zip(LETTERS, texts, strict=False))
