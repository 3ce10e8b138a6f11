"""Conditions on the fields of records, `FIELD=VALUE` and the like.

In Python: SQLite's JSON functions cannot go into the objects of lists, compare numbers beyond 64 bits, or match a
shell's globs, and parsing a record takes them longer than orjson.
"""

import fnmatch
import operator
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.index.store import parse_record
from vlmkit.io.records import Record, dumps, loads

FORM = re.compile(r"([^=!<>~]+)(!=|>=|<=|=|>|<|~)(.*)", re.DOTALL)
LITERALS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
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


def parse_condition(text: str) -> Condition:
    """The condition that `text` spells. Raises VlmkitError."""
    found = FORM.fullmatch(text)
    if found is None or '"' in found[1]:
        raise VlmkitError(f"--where {text}: not a condition", "write FIELD=VALUE, or one of != < <= > >= ~ for =")
    return Condition(*found.groups())


def matching(db: sqlite3.Connection, conditions: Sequence[Condition]) -> np.ndarray:
    """The slots (ascending, int64) of the rows of table `records` that meet all `conditions`.

    A text compares as text, a number as a number, `true`, `false` and `null` equal themselves; `~` is a glob on texts,
    as a shell's. Of a list, also one on the way to a nested field, any element may meet the condition; for `!=` none
    may equal the value. A record without the field meets none.
    """
    # Records hold names and texts as vlmkit writes them: looking for these bytes first is quicker.
    spelled = [dumps({name: 0})[1:-3] for condition in conditions for name in condition.field.split(".")]
    texts = [c.value for c in conditions if c.operator == "=" and c.value not in LITERALS and _number(c.value) is None]
    spelled += [dumps({"": text})[4:-2] for text in texts]
    quick = " AND ".join(["instr(record, ?)"] * len(spelled)) or "1"
    tests = [(c.field.split("."), c.operator == "!=", _test(c)) for c in conditions]

    def slots() -> Iterator[int]:
        for slot, line in db.execute(f"SELECT slot, record FROM records WHERE {quick} ORDER BY slot", spelled):
            record = parse_record(line, slot)
            if all(_meets(record, names, negated, test) for names, negated, test in tests):
                yield slot

    return np.fromiter(slots(), np.int64)


def _meets(record: Record, names: list[str], negated: bool, test: Callable[[Any], bool]) -> bool:
    elements: list[Any] = [record]
    for name in names:
        found = [element[name] for element in elements if isinstance(element, dict) and name in element]
        elements = [element for value in found for element in (value if isinstance(value, list) else (value,))]
    return bool(found) and any(map(test, elements)) != negated


def _test(condition: Condition) -> Callable[[Any], bool]:
    """Whether one element of a field meets `condition`; for `!=`, whether it equals the value."""
    value, number = condition.value, _number(condition.value)
    if condition.operator == "~":
        glob = re.compile(fnmatch.translate(value))
        return lambda element: isinstance(element, str) and glob.match(element) is not None
    compare = COMPARE[condition.operator]
    is_literal = value in LITERALS and compare is operator.eq

    def test(element: Any) -> bool:
        if isinstance(element, str):
            return compare(element, value)
        if isinstance(element, bool) or element is None:
            return is_literal and element is LITERALS[value]
        return number is not None and isinstance(element, int | float) and compare(element, number)

    return test


def _number(value: str) -> int | float | None:
    """The JSON number that `value` is."""
    try:
        found = loads(value.encode())
    except ValueError:
        return None
    return found if type(found) in (int, float) else None
