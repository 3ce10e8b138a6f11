"""Answers as a table (CSV), a JSON array, XML or text, for programs that read no JSON lines."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import orjson

from vlmkit.io.records import Record, loads

ELEMENT = re.compile(r"(?!xml)[A-Za-z_][A-Za-z0-9_.-]*", re.IGNORECASE)
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # begins what spreadsheets take for one: a cell that runs
NUMBER = re.compile(r"[+-]?(\d+([.,]\d+)*)([eE][+-]?\d+)?%?")
NESTED = 8  # references and lists inside each other
OTHER = "other"  # the column of fields that a schema allows without naming them


def in_form(records: Iterable[Record], form: str, field: str, schema: dict[str, Any] | None) -> Iterator[bytes]:
    """What is written of `records`, whose `field` (answer or caption) is JSON of the `schema` if there is one.

    `form` is csv, json, text or xml. Nothing comes before the first record or the end.
    """
    makers = {"csv": _csv, "json": _json, "text": _text, "xml": _xml}
    return makers[form](records, field, schema)


def _value(record: Record, field: str, schema: dict[str, Any] | None) -> Any:
    """The answer, parsed if it matches the schema; None if it does not."""
    if schema is None:
        return record.get(field, "")
    return loads(record[field].encode()) if record.get("valid") else None


def _json(records: Iterable[Record], field: str, schema: dict[str, Any] | None) -> Iterator[bytes]:
    begin = b"[\n"
    for record in records:
        value = _value(record, field, schema)
        yield begin + orjson.dumps(record if value is None else record | {field: value})
        begin = b",\n"
    yield b"[]\n" if begin == b"[\n" else b"\n]\n"


def _text(records: Iterable[Record], field: str, _: dict[str, Any] | None) -> Iterator[bytes]:
    for number, record in enumerate(records):
        yield f"{chr(10) * (number > 0)}{record.get(field, '')}\n".encode()


def _csv(records: Iterable[Record], field: str, schema: dict[str, Any] | None) -> Iterator[bytes]:
    """A row an answer, of a list a row an element; in cells that a spreadsheet would run an apostrophe stands first."""
    columns, is_open = _columns(schema)
    about = ["id", "question"] if field == "answer" else ["id"]
    head = _row([*about, *columns, *([OTHER] if is_open else [])] if columns else [*about, field])
    for record in records:
        named = [record.get(name) for name in about]
        value = _value(record, field, schema)
        for one in value if isinstance(value, list) and columns else [value]:
            cells = [one] if not columns else _cells(one, columns, is_open)
            yield head + _row([*named, *cells])
            head = b""
    yield head


def _columns(schema: dict[str, Any] | None) -> tuple[list[str], bool]:
    """The fields of a schema of an object, or of a list of them, and whether there may be others."""
    part = schema or {}
    for _ in range(NESTED):
        if isinstance(part.get("$ref"), str):
            part = _referred(schema or {}, part["$ref"])
        elif "properties" not in part and isinstance(part.get("items"), dict):
            part = part["items"]
    return list(part.get("properties") or ()), part.get("additionalProperties") is not False


def _referred(schema: Any, reference: str) -> dict[str, Any]:
    """The part of a schema at `#/$defs/name`."""
    for name in reference.removeprefix("#/").split("/"):
        schema = schema.get(name) if isinstance(schema, dict) else None
    return schema if isinstance(schema, dict) else {}


def _cells(value: Any, columns: list[str], is_open: bool) -> list[Any]:
    known = value if isinstance(value, dict) else {}
    others: Any = {name: inner for name, inner in known.items() if name not in columns}
    if value is not None and not isinstance(value, dict):
        others = value
    return [*(known.get(name) for name in columns), *([others or None] if is_open else [])]


def _row(cells: list[Any]) -> bytes:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(map(_cell, cells))
    return written.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return orjson.dumps(value).decode()
    text = value.replace("\0", "")
    return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def _xml(records: Iterable[Record], field: str, schema: dict[str, Any] | None) -> Iterator[bytes]:
    head = f'<?xml version="1.0" encoding="UTF-8"?>\n<{field}s>\n'
    for record in records:
        value = _value(record, field, schema)
        named = {name: str(record[name]) for name in ("id", "question") if record.get(name)}
        known = "".join(f" {name}={quoteattr(_legal(text))}" for name, text in named.items())
        valid = ' valid="false"' if record.get("valid") is False else ""
        inner = _inner(record.get(field, "") if value is None else value)
        yield f"{head}<{field}{known}{valid}>{inner}</{field}>\n".encode()
        head = ""
    yield f"{head}</{field}s>\n".encode()


def _inner(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(_element(name, inner) for name, inner in value.items())
    if isinstance(value, list):
        return "".join(_element("item", inner) for inner in value)
    return escape(_legal(value)) if isinstance(value, str) else "" if value is None else orjson.dumps(value).decode()


def _element(name: str, value: Any) -> str:
    tag, about = (name, "") if ELEMENT.fullmatch(name) else ("field", f" name={quoteattr(_legal(name))}")
    return f"<{tag}{about}>{_inner(value)}</{tag}>"


def _legal(text: str) -> str:
    """`text` without characters that XML cannot hold."""
    return NOT_XML.sub("\ufffd", text)
