"""Values in records: what is at a path, and what a JSON value says as text."""

import ast
import contextlib
import json
from typing import Any

SAYS = ("answer", "caption", "text")  # the fields by which an object stands for a text


def value_at(record: Any, path: str, absent: Any = None) -> Any:
    """The value at the dotted `path` in `record`, `absent` where there is none. The whole path may be one key."""
    if isinstance(record, dict) and path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    if isinstance(record, dict) and head in record:
        inner = record[head]
    elif isinstance(record, list) and head.isdecimal() and int(head) < len(record):
        inner = record[int(head)]
    else:
        return absent
    return value_at(inner, rest, absent) if dot else inner


def text_of(value: Any) -> str | None:
    """A JSON value as text: numbers and truth values as written, a list of one (lmms-eval's responses) opened.

    A longer list is written as JSON. None for what says nothing: null, an empty list, an object without a text.
    """
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        return text_of(next((value[name] for name in SAYS if name in value), None))
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, default=str) if value else None
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)  # spreadsheets: 2.0


def texts_of(value: Any) -> list[str]:
    """Texts of a list of strings or of VQA's `{"answer": …}`, or of one value; nothing of an empty string alone."""
    if value == "":
        return []
    texts = [text_of(item) for item in (value if isinstance(value, list) else [value])]
    return [text for text in texts if text is not None]


def literal_list(value: Any) -> list[Any] | None:
    """A list, also one that a text writes as Python or JSON do; None for anything else."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        for parse in (ast.literal_eval, json.loads):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = parse(value)
                break
    return value if isinstance(value, list) else None
