"""Conditions on the fields of records, `FIELD=VALUE` and the like, answered by SQLite's JSON functions."""

import re
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.records import dumps, loads

if TYPE_CHECKING:
    import numpy as np

FORM = re.compile(r"([^=!<>~]+)(!=|>=|<=|=|>|<|~)(.*)", re.DOTALL)
LITERALS = ("true", "false", "null")
LARGEST = 2**63  # of SQLite's integers


class Condition(NamedTuple):
    """`field` (dotted where nested) `operator` (=, !=, <, <=, >, >=, ~) `value`."""

    field: str
    operator: str
    value: str


def parse_condition(text: str) -> Condition:
    """The condition that `text` spells. Raises VlmkitError."""
    found = FORM.fullmatch(text)
    if found is None or '"' in found[1]:
        raise VlmkitError(f"--where {text}: no condition", "write FIELD=VALUE, or one of != < <= > >= ~ for =")
    return Condition(*found.groups())


def matching(db: sqlite3.Connection, conditions: Sequence[Condition]) -> "np.ndarray":
    """The slots (ascending, int64) of the rows of table `records` that meet all `conditions`.

    A text compares as text, a number as a number, `true`, `false` and `null` equal themselves; `~` is SQLite's GLOB on
    texts. Of a list any element may meet the condition; for `!=` none may equal the value. A record without the field
    meets none.
    """
    import numpy as np

    tests, values = [], []
    for condition in conditions:
        test, bound = _sql(condition)
        tests.append(test)
        values += bound
    sql = f"SELECT slot FROM records WHERE {' AND '.join(tests) or '1'} ORDER BY slot"
    return np.fromiter((slot for (slot,) in db.execute(sql, values)), np.int64)


def _sql(condition: Condition) -> tuple[str, list[object]]:
    """A condition as an SQL expression and the values of its question marks."""
    path = "$" + "".join(f'."{name}"' for name in condition.field.split("."))
    test, bound = _element(condition)
    kind = "json_type(CAST(record AS TEXT), ?)"
    found = f"EXISTS (SELECT 1 FROM json_each(CAST(record AS TEXT), ?) AS element WHERE {test}) AND {kind} != 'object'"
    values: list[object] = [path, *bound, path]
    if condition.operator == "!=":
        return f"({kind} IS NOT NULL AND NOT ({found}))", [path, *values]
    if condition.operator == "=" and len(bound) == 1 and condition.value not in LITERALS:
        # Text stands in the record as our own writer spells it: looking for these bytes first is several times quicker.
        return f"(instr(record, ?) AND {found})", [dumps({"": condition.value})[4:-2], *values]
    return f"({found})", values


def _element(condition: Condition) -> tuple[str, list[object]]:
    """The test of one element of a field; that of `!=` is the one of `=`."""
    value = condition.value
    if condition.operator == "~":
        return "element.type = 'text' AND element.atom GLOB ?", [value]
    operator = "=" if condition.operator == "!=" else condition.operator
    test = f"element.type = 'text' AND element.atom {operator} ?"
    if (number := _number(value)) is not None:
        return f"{test} OR element.type IN ('integer', 'real') AND element.atom {operator} ?", [value, number]
    if operator == "=" and value in LITERALS:
        return f"{test} OR element.type = ?", [value, value]
    return test, [value]


def _number(text: str) -> int | float | None:
    """The JSON number that `text` is."""
    try:
        value = loads(text.encode())
    except ValueError:
        return None
    if type(value) not in (int, float):
        return None
    return value if isinstance(value, float) or -LARGEST <= value < LARGEST else float(value)
