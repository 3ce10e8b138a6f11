"""--where, held against a plain filter in Python."""

import fnmatch
import json
import operator
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jsonl, records
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.records import dumps
from vlmkit.where import matching, parse_condition

COMPARE = {"=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
names = st.sampled_from(["a", "b", "c d", "é", "x"])
texts = st.text(st.sampled_from("aBé*1 .'\\\n"), max_size=3) | st.sampled_from(
    ["true", "null", "10", "9", "1e1", "-0.5"]
)
scalars = texts | st.integers(-3, 12) | st.sampled_from([0.5, -0.5, 10.0, 2.0**70]) | st.booleans() | st.none()
fields = scalars | st.lists(scalars, max_size=3) | st.dictionaries(names, scalars | st.dictionaries(names, scalars))
operators = st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "~"])
values = scalars.map(lambda v: v if isinstance(v, str) else json.dumps(v))
conditions = st.tuples(st.lists(names, min_size=1, max_size=3).map(".".join), operators, values)


def plain(record: dict, field: str, sign: str, value: str) -> bool:
    """What the documentation says."""
    found: object = record
    for name in field.split("."):
        if not isinstance(found, dict) or name not in found:
            return False
        found = found[name]
    elements = found if isinstance(found, list) else [] if isinstance(found, dict) else [found]
    if sign == "!=":
        return not any(meets(element, "=", value) for element in elements)
    return any(meets(element, sign, value) for element in elements)


def meets(element: object, sign: str, value: str) -> bool:
    if isinstance(element, str):
        return fnmatch.fnmatchcase(element, value) if sign == "~" else COMPARE[sign](element.encode(), value.encode())
    if sign == "~" or isinstance(element, list | dict):
        return False
    if isinstance(element, bool) or element is None:
        return sign == "=" and json.dumps(element) == value
    try:
        number = json.loads(value)
    except ValueError:
        return False
    return type(number) in (int, float) and COMPARE[sign](element, number)


@given(st.lists(st.dictionaries(names, fields, max_size=4), max_size=6), st.lists(conditions, min_size=1, max_size=3))
def test_as_a_plain_filter(rows: list[dict], asked: list[tuple[str, str, str]]) -> None:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE records (slot INTEGER PRIMARY KEY, id TEXT, record BLOB)")
    db.executemany("INSERT INTO records VALUES (?, '', ?)", [(2 * i, dumps(row)) for i, row in enumerate(rows)])
    parsed = [parse_condition("".join(parts)) for parts in asked]
    if [tuple(condition) for condition in parsed] != asked:
        return  # `a=` with the value `=1` reads as another condition than was meant
    expected = [2 * i for i, row in enumerate(rows) if all(plain(row, *parts) for parts in asked)]
    found = matching(db, parsed)
    assert found.tolist() == expected and found.dtype == np.int64
    db.close()


def test_among_the_matching_records_alone(vlmkit) -> None:
    rows = [embedded(str(i), [1, i / 50], number=i, tags=["even" if i % 2 == 0 else "odd"]) for i in range(50)]
    vlmkit("index", stdin=jsonl(*rows, embedded("t", [1, 0.01], camera={"maker": "Q"}, sharp=True)))

    def found(*conditions: str, code: int = 0) -> list[str]:
        asked = [argument for condition in conditions for argument in ("--where", condition)]
        hits = records(vlmkit("search", "--like", "0", "-k", 3, *asked, code=code).stdout)
        assert [r["rank"] for r in hits] == list(range(1, len(hits) + 1))
        return [r["id"] for r in hits]

    assert found("tags=odd", "number>10") == ["11", "13", "15"]
    assert found("number>=47") == ["47", "48", "49"]
    assert found("camera.maker~[A-Q]*", "sharp=true") == ["t"]
    assert found("no.such=field", code=1) == []
    assert found("tags!=even", "number<4") == ["1", "3"]


@pytest.mark.parametrize("wrong", ["", "field", "=x", 'a"b=1', "<3"])
def test_no_condition(vlmkit, tmp_path: Path, wrong: str) -> None:
    vlmkit("index", stdin=jsonl(embedded("a", [1, 0])))
    assert b"no condition" in vlmkit("search", "--like", "a", "--where", wrong, code=2).stderr
