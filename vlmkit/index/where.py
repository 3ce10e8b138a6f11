"""Conditions on the fields of records, `FIELD=VALUE` and the like.

In Python: SQLite's JSON functions cannot go into the objects of lists, compare numbers beyond 64 bits, or match a
shell's globs, and parsing a record takes them longer than orjson.
"""

import contextlib
import difflib
import fnmatch
import operator
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.index.near import IN_BAND, Near, Survey
from vlmkit.index.store import parse_record
from vlmkit.io.records import Record, dumps, loads

FORM = re.compile(r"([^=!<>~]+)(!=|>=|<=|=|>|<|~)(.*)", re.DOTALL)
LITERALS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
TIMES = {"mtime", "ctime", "taken"}
ORDERS = {"<", "<=", ">", ">="}
DATE = re.compile(r"\d{4}($|-\d\d($|-\d\d($|[T ]\d\d($|:\d\d))))")
KINDS = {str: "text", int: "number", float: "number", dict: "object", list: "object"}  # else literal
LISTED = 40  # fields that an error names
DEEPEST = 3  # objects in objects of which it names the fields
MOST_SPELLED = 100  # of what records are looked through for by SQLite, whose expressions have a limit
# The fields of records, which a condition may name before any record has them.
# fmt: off
FIELDS = {
    "id", "image", "images", "text", "captions", "question", "answers", "conversations", "conversations.from",
    "conversations.value", "category", "mtime", "ctime", "bytes", "width", "height", "taken", "camera", "lat",
    "lon", "hash", "page", "time", "ocr", "model", "embedding", "query", "rank", "score", "label", "labels",
    "labels.label", "labels.score", "predicted", "caption", "caption_model", "answer", "answer_model", "finish",
    "confidence", "ms", "tokens", "reasoning", "boxes", "boxes.label", "boxes.box", "boxes.score", "boxes.polygon",
    "error", "match_line", "match_field",
}
# fmt: on
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.eq,  # of none of the elements
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Condition(NamedTuple):
    """`field` (dotted where nested) `operator` (=, !=, <, <=, >, >=, ~) `value`."""

    field: str
    operator: str
    value: str


Conditions = Sequence[Condition | Near]


def parse_condition(text: str) -> Condition:
    """The condition that `text` spells. Raises VlmkitError."""
    found = FORM.fullmatch(text)
    if found is None or '"' in found[1] or not found[1].strip():
        raise VlmkitError(f"--where {text}: not a condition", "write FIELD=VALUE, or one of != < <= > >= ~ for =")
    field, operator, value = found.groups()
    # Spaces around the operator belong to neither side, where they stand before it.
    field, value = field.strip(), value if field == field.rstrip() else value.strip()
    if field in TIMES and operator in ORDERS:
        value = value.strip()
        if _date(value) is None and _number(value) is None:
            raise VlmkitError(f"--where {text}: {value} is not a time", "write a date such as 2025-12-31 or 2025-12")
    return Condition(field, operator, value)


def matching(db: sqlite3.Connection, conditions: Conditions) -> np.ndarray:
    """The slots (ascending, int64) of the rows of table `records` that meet all `conditions`.

    A text compares as text, a number as a number, `true`, `false` and `null` equal themselves; `~` is a glob on texts,
    as a shell's. A time (see TIMES) compares with a year, a date, or a date and time, in local time and as far as that
    goes: `mtime=2025` is any time in that year, `mtime>2025` one after it. Of a list, also one on the way to a nested
    field, any element may meet the condition; for `!=` none may equal the value. A record without the field meets none.
    """
    # Records hold names and texts as vlmkit writes them: looking for these bytes first is quicker.
    spelled = [dumps({name: 0})[1:-3] for condition in conditions for name in _names(condition)]
    texts = [c.value for c in conditions if isinstance(c, Condition) and is_equal_text(c)]
    spelled += [dumps({"": text})[4:-2] for text in texts]
    spelled = list(dict.fromkeys(spelled))[:MOST_SPELLED]
    bands = [c.band for c in conditions if isinstance(c, Near)]
    quick = " AND ".join(["instr(record, ?)"] * len(spelled) + [IN_BAND] * len(bands)) or "1"
    rows = db.execute(f"SELECT slot, record FROM records WHERE {quick} ORDER BY slot", [*spelled, *chain(*bands)])
    meets = predicate(conditions)
    return np.fromiter((slot for slot, line in rows if meets(parse_record(line, slot))), np.int64)


def predicate(conditions: Conditions) -> Callable[[Record], bool]:
    """Whether a record meets all `conditions`."""
    tests = [(c.field.split("."), c.operator == "!=", _test(c)) for c in conditions if isinstance(c, Condition)]
    places = [c for c in conditions if isinstance(c, Near)]
    return lambda record: (
        all(near.meets(record) for near in places)
        and all(_meets(record, names, negated, test) for names, negated, test in tests)
    )


def _names(condition: Condition | Near) -> list[str]:
    """The fields that a record has which meets `condition`."""
    return ["lat", "lon"] if isinstance(condition, Near) else condition.field.split(".")


def is_equal_text(condition: Condition) -> bool:
    """Whether only texts can meet `condition`, those that are the value itself."""
    return condition.operator == "=" and _kind(condition) == "text"


def _meets(record: Record, names: list[str], negated: bool, test: Callable[[Any], bool]) -> bool:
    found, elements = _reach(record, names)
    return found and any(map(test, elements)) != negated


def _reach(record: Record, names: list[str]) -> tuple[bool, list[Any]]:
    """Whether `record` has the field of these names, and its elements: those of a list, or the value itself."""
    elements: list[Any] = [record]
    found: list[Any] = []
    for name in names:
        found = [element[name] for element in elements if isinstance(element, dict) and name in element]
        elements = [element for value in found for element in (value if isinstance(value, list) else (value,))]
    return bool(found), elements


def _test(condition: Condition) -> Callable[[Any], bool]:
    """Whether one element of a field meets `condition`; for `!=`, whether it equals the value."""
    value, number = condition.value, _number(condition.value)
    if condition.operator == "~":
        glob = re.compile(fnmatch.translate(value))
        return lambda element: isinstance(element, str) and glob.match(element) is not None
    compare = COMPARE[condition.operator]
    is_literal = value in LITERALS and compare is operator.eq
    date = _date(value) if condition.field in TIMES else None

    def test(element: Any) -> bool:
        if date is not None and (time := _local_time(element)) is not None:
            return compare(time[: len(date)], date)
        if isinstance(element, str):
            return compare(element, value)
        if isinstance(element, bool) or element is None:
            return is_literal and element is LITERALS[value]
        return number is not None and isinstance(element, int | float) and compare(element, number)

    return test


def _kind(condition: Condition) -> str:
    """What the value of `condition` is: literal, date (only for times, see TIMES), number or text."""
    if condition.value in LITERALS:
        return "literal"
    if condition.field in TIMES and _date(condition.value):
        return "date"
    return "text" if _number(condition.value) is None else "number"


def _date(value: str) -> str | None:
    """A year, date, or date and time (with a zone: in local time) in ISO 8601; None for what is none of them."""
    if not DATE.match(value):
        return None
    with contextlib.suppress(ValueError):
        if len(value) > len("0000-00-00T00:00:00"):
            return datetime.fromisoformat(value).astimezone().replace(tzinfo=None).isoformat()
        datetime.fromisoformat(value + "0000-01-01T00:00:00"[len(value) :])
        return value.replace(" ", "T")
    return None


def _local_time(element: Any) -> str | None:
    """The ISO 8601 form of a text or of seconds since 1970, in local time; None for what is neither."""
    if isinstance(element, str):
        return element
    if isinstance(element, bool) or not isinstance(element, int | float):
        return None
    try:
        return datetime.fromtimestamp(element).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def doubtful(conditions: Conditions, count: int) -> Conditions:
    """Those of `conditions`, which met `count` records together, that `explain` has to look at."""
    return [c for c in conditions if not count or (isinstance(c, Condition) and c.operator not in ("=", "~"))]


def explain(records: Iterable[Record], conditions: Conditions) -> list[str]:
    """A line for each of `conditions` that no record can meet, and what to write instead: its value cannot be compared
    with what the field holds, or nothing is near.

    Raises VlmkitError for a field that is neither a field of records nor in the index. Without places records are read
    until there is one for each condition with which its value can be compared.
    """
    kinds: dict[Condition, set[str]] = {c: set() for c in conditions if isinstance(c, Condition)}
    surveys = [Survey(c) for c in conditions if isinstance(c, Near)]
    open_conditions = set(kinds)
    names: set[str] = set()
    for record in records:
        _add_names(record, "", names)
        for survey in surveys:
            survey.note(record)
        for condition in tuple(open_conditions):
            found, elements = _reach(record, condition.field.split("."))
            if found:
                kinds[condition] |= {KINDS.get(type(element), "literal") for element in elements} or {"nothing"}
                if not _mismatch(condition, kinds[condition]):
                    open_conditions.remove(condition)
        if not open_conditions and not surveys:
            return []
    lines = [_describe(c, kinds[c], sorted(names)) for c in kinds if c in open_conditions]
    return lines + [line for survey in surveys if (line := survey.line())]


def _add_names(record: Record, prefix: str, names: set[str]) -> None:
    """Add the fields of `record` to `names`, those of the objects in it too, as conditions name them."""
    for name, value in record.items():
        names.add(prefix + name)
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and prefix.count(".") < DEEPEST:
            _add_names(inner, f"{prefix}{name}.", names)


def _describe(condition: Condition, kinds: set[str], names: list[str]) -> str:
    what = f"--where {''.join(condition)}: "
    if kinds:
        return what + _mismatch(condition, kinds)
    if condition.field in FIELDS:
        return what + f"no record in the index has {condition.field}: leave the condition out, or add the field"
    close = difflib.get_close_matches(condition.field, names, 1)
    known = ", ".join([*names[:LISTED], *["…"] * (len(names) > LISTED)])
    raise VlmkitError(
        what + f"no record has a field {condition.field}", f"name {close[0] if close else 'one'} of: {known}"
    )


def _mismatch(condition: Condition, kinds: set[str]) -> str:
    """Why the value of `condition` cannot be compared with elements of these kinds; empty where it can."""
    field, kind, value = condition.field, _kind(condition), condition.value
    if kinds <= {"object"}:
        return f"{field} holds objects: name a field in them, as in labels.label"
    if condition.operator == "~":
        return "" if kinds & {"text", "nothing"} else f"{field} holds no text: write =, < or > in place of ~"
    if field in TIMES and kind in ("text", "number") and (kind == "text" or "text" in kinds):
        return f"{field} is a time, with which {value} cannot be compared: write a date such as 2025-12-31"
    if kind in ("text", "literal") and kinds == {"number"}:
        return f"{field} holds numbers, with which {value} cannot be compared: write a number"
    if kind == "number" and kinds == {"text"} and condition.operator not in ("=", "!="):
        return f"{field} holds texts, with which {value} is compared as a text: name a field of numbers"
    return ""


def _number(value: str) -> int | float | None:
    """The JSON number that `value` is."""
    try:
        found = loads(value.encode())
    except ValueError:
        return None
    return found if type(found) in (int, float) else None
