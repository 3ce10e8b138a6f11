"""--where, held against a plain filter in Python."""

import fnmatch
import json
import operator
import sqlite3
from datetime import datetime, timedelta, timezone
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


def filtered(vlmkit, condition: str, code: int = 0) -> tuple[list[str], str]:
    """The ids that meet a condition, and what is said."""
    done = vlmkit("search", "--like", "none", "--where", condition, code=code)
    assert done.stderr.count(b"\n") == (done.stderr != b"")
    return sorted(r["id"] for r in records(done.stdout)), done.stderr.decode()


def test_times_compare_with_dates(vlmkit) -> None:
    """As far as the date goes, in local time; a number other than a year is seconds."""
    days = {"old": "2019-12-31T23:59:59", "mid": "2023-05-04T10:00:00", "new": "2024-01-01T00:00:00"}
    rows = [
        embedded(name, [1, i], mtime=datetime.fromisoformat(day).timestamp(), taken=day)
        for i, (name, day) in enumerate(days.items())
    ]
    vlmkit("index", stdin=jsonl(embedded("none", [0, 1]), *rows))
    for field in ("mtime", "taken"):
        for condition, expected in {
            ">2019": ["mid", "new"],
            ">=2019": ["mid", "new", "old"],
            "<2020": ["old"],
            "=2023": ["mid"],
            "!=2023-05": ["new", "old"],
            "=2023-05-04": ["mid"],
            "<=2023-05-04": ["mid", "old"],
            ">2023-05-04": ["new"],
            ">2023-05-04T09:59": ["mid", "new"],
            "<2023-05-04 10:00:00": ["old"],
            " >= 2023-05 ": ["mid", "new"],
        }.items():
            assert filtered(vlmkit, field + condition) == (expected, ""), (field, condition)
    moment = datetime.fromisoformat(days["mid"]).astimezone()
    assert filtered(vlmkit, f"mtime>={moment.astimezone(timezone(timedelta(hours=5))).isoformat()}")[0] == [
        "mid",
        "new",
    ]
    assert filtered(vlmkit, f"mtime<={moment.timestamp():.0f}") == (["mid", "old"], "")
    for wrong in ("mtime=2023-13", "taken<1700000000"):
        assert "is a time" in filtered(vlmkit, wrong, code=1)[1]
    for wrong in ("mtime>2023/05/04", "mtime>yesterday", "taken>4.5.2023", "taken>=2023-06-31", "taken<2021-2-4"):
        assert "is not a time" in vlmkit("search", "--like", "none", "--where", wrong, code=2).stderr.decode()


@pytest.mark.parametrize(
    ("condition", "told", "code"),
    [
        ("width>tall", "tall", 1),
        ("width!=tall", "tall", 0),
        ("width=true", "true", 1),
        ("width~4*", "no text", 1),
        ("city>9", "as a text", 0),
        ("boxes=cat", "holds objects", 1),
        ("camera=X", "no record in the index has camera", 1),
        ("ocr.x=1", "boxes, boxes.box, boxes.label, city, id", 2),
        ("widht>3", "name width of", 2),
        ("boxes.lable=cat", "no record has a field boxes.lable: name boxes.label of: ", 2),
        ("width>41", "none of 2 records", 1),
        ("city=Rome", "none of 2 records", 1),
        ("tags=x", "none of 2 records", 1),
    ],
)
def test_what_cannot_be_met_is_told(vlmkit, condition: str, told: str, code: int) -> None:
    box = {"label": "cat", "box": [0, 0, 1, 1]}
    rows = [embedded("none", [1, 0]), embedded("a", [1, 1], width=40, city="Bern", boxes=[box], tags=[])]
    vlmkit("index", stdin=jsonl(*rows))
    said = filtered(vlmkit, condition, code)[1]
    assert told in said and bool(said) == bool(told)


@pytest.mark.parametrize("wrong", ["", "field", "=x", 'a"b=1', "<3", " = 3"])
def test_not_a_condition(vlmkit, tmp_path: Path, wrong: str) -> None:
    vlmkit("index", stdin=jsonl(embedded("a", [1, 0])))
    assert b"not a condition" in vlmkit("search", "--like", "a", "--where", wrong, code=2).stderr
