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

from vlmkit.index.where import matching, parse_condition
from vlmkit.io.records import dumps

COMPARE = {"=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
names = st.sampled_from(["a", "b", "c d", "é", "x"])
texts = st.text(st.sampled_from("aBé*1 .'\\\n"), max_size=3) | st.sampled_from(
    ["true", "null", "10", "9", "1e1", "-0.5"]
)
scalars = texts | st.integers(-3, 12) | st.sampled_from([0.5, -0.5, 10.0, 2.0**70]) | st.booleans() | st.none()
objects = st.dictionaries(names, scalars | st.dictionaries(names, scalars), max_size=3)
fields = scalars | objects | st.lists(scalars | objects | st.lists(scalars, max_size=2), max_size=3)
operators = st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "~"])
values = scalars.map(lambda v: v if isinstance(v, str) else json.dumps(v))
conditions = st.tuples(st.lists(names, min_size=1, max_size=3).map(".".join), operators, values)


def plain(record: dict, field: str, sign: str, value: str) -> bool:
    """What the documentation says."""
    there = reached(record, field.split("."))
    elements = [element for found in there for element in (found if isinstance(found, list) else [found])]
    if not there:
        return False
    if sign == "!=":
        return not any(meets(element, "=", value) for element in elements)
    return any(meets(element, sign, value) for element in elements)


def reached(value: object, names: list[str]) -> list[object]:
    """What stands under the names, in objects and in the objects of lists."""
    if not names:
        return [value]
    parts = value if isinstance(value, list) else [value]
    inside = [part[names[0]] for part in parts if isinstance(part, dict) and names[0] in part]
    return [found for part in inside for found in reached(part, names[1:])]


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


def test_objects_in_lists(vlmkit) -> None:
    """`labels` as classify writes them, and boxes."""
    cat, dog = {"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.2}
    rows = [
        embedded("both", [1, 0], labels=[cat, dog]),
        embedded("cat", [1, 0.1], labels=[cat]),
        embedded("one", [1, 0.2], labels={"label": "cat", "score": 0.1}),
        embedded("none", [1, 0.3], labels=[]),
        embedded("texts", [1, 0.4], labels=["cat"]),
    ]
    vlmkit("index", stdin=jsonl(*rows))

    def found(condition: str) -> list[str]:
        return [r["id"] for r in records(vlmkit("search", "--like", "none", "--where", condition).stdout)]

    assert sorted(found("labels.label=cat")) == ["both", "cat", "one"]
    assert found("labels.label=dog") == ["both"]
    assert sorted(found("labels.label!=dog")) == ["cat", "one"]
    assert sorted(found("labels.score>0.5")) == ["both", "cat"]
    assert sorted(found("labels.label~[!d]*")) == ["both", "cat", "one"]
    assert found("labels=cat") == ["texts"]


@pytest.mark.parametrize("wrong", ["", "field", "=x", 'a"b=1', "<3"])
def test_not_a_condition(vlmkit, tmp_path: Path, wrong: str) -> None:
    vlmkit("index", stdin=jsonl(embedded("a", [1, 0])))
    assert b"not a condition" in vlmkit("search", "--like", "a", "--where", wrong, code=2).stderr
