"""Search by the words of records: what is written in pictures, said of them, and the names of files."""

import os
import sqlite3
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jsonl, records

from vlmkit.index import Index, Writer
from vlmkit.index.parts import Parts
from vlmkit.index.words import LEFT, catch_up, fold, open_words
from vlmkit.search.words import FETCHED, Term, WordQuery, find_words, finder, match_line

TEXTS = {
    "a/IMG_0001.jpg": {"ocr": "INVOICE No. 4711\nAcme Corp.\nTotal due 42.50 EUR"},
    "a/IMG_0002.jpg": {"ocr": "Invoice No. 4712\nZebra Ltd."},
    "b/Straße in Zürich.jpg": {"caption": "a street with trams"},
    "b/" + unicodedata.normalize("NFD", "Käthe Müller.jpg"): {"captions": ["two women", "friends at a café"]},
    "c/beach holiday.jpg": {},
    "c/請求書.png": {"ocr": "東京都千代田区"},
    "c/Paweł.png": {"text": "a giraffe"},
}


def rows(texts: dict[str, dict], start: int = 0) -> list[dict]:
    vectors = np.eye(16)
    return [embedded(f"/p/{n}", vectors[(start + i) % 16].tolist(), **t) for i, (n, t) in enumerate(texts.items())]


@pytest.fixture
def indexed(vlmkit) -> None:
    vlmkit("index", stdin=jsonl(*rows(TEXTS)))


def names(vlmkit, *words: object, code: int = 0) -> list[str]:
    found = records(vlmkit("search", "--by", "words", *words, code=code).stdout)
    return [record["image"].removeprefix("/p/") for record in found]


FOUND = {
    "invoice 4711": ["a/IMG_0001.jpg", "a/IMG_0002.jpg"],
    '"invoice no 4712"': ["a/IMG_0002.jpg"],
    '"4711 invoice"': [],
    "inv* acme": ["a/IMG_0001.jpg", "a/IMG_0002.jpg"],
    "42.50": ["a/IMG_0001.jpg"],
    "50.42": [],
    "strasse": ["b/Straße in Zürich.jpg"],
    "STRASSE zuerich": ["b/Straße in Zürich.jpg"],
    "tram*": ["b/Straße in Zürich.jpg"],
    "cafe": [list(TEXTS)[3]],
    "müller": [list(TEXTS)[3]],
    "mueller": [list(TEXTS)[3]],
    "muller": [list(TEXTS)[3]],
    "kathe": [list(TEXTS)[3]],
    '"women friends"': [],  # of two captions
    "千代田": ["c/請求書.png"],
    "請求": ["c/請求書.png"],
    "田千": [],
    "pawel giraffe": ["c/Paweł.png"],
    "the holiday": ["c/beach holiday.jpg"],
    "png": [],  # an ending is no word
    "img 0002": ["a/IMG_0002.jpg", "a/IMG_0001.jpg"],
}


@pytest.mark.parametrize("query", FOUND)
def test_finds_records_by_their_words(vlmkit, indexed, query: str) -> None:
    assert names(vlmkit, query, code=0 if FOUND[query] else 1) == FOUND[query]


def test_folding() -> None:
    assert fold("ÀÉÎ Straße ﬁne ŁÓDŹ Ørsted") == "aei strasse fine lodz orsted"
    assert fold(unicodedata.normalize("NFD", "한국어 Ü")) == "한국어 u"


HOSTILE = ['"', '""', "*", "AND", "a OR", "NEAR(", "body:x", "x^2", "{a b}", "a + b", "-", "\0x", "😀", "a" * 99_999]


def test_no_query_is_a_syntax_error(tmp_path: Path) -> None:
    with Index(write(tmp_path / "i", TEXTS)) as index:
        for query in [*HOSTILE, " ".join(HOSTILE), *(f'"{query}' for query in HOSTILE)]:
            find_words(index.words(), WordQuery.of([query], [query]))
            assert finder(index, [query], None, print)([query, *HOSTILE]) is None


def test_words_only_records(vlmkit, indexed) -> None:
    found = records(vlmkit("search", "--by", "words", "total invoice").stdout)
    assert [(r["rank"], r["match_line"], r["match_field"], "score" in r) for r in found] == [
        (1, "Total due 42.50 EUR", "ocr", False),
        (2, "Invoice No. 4712", "ocr", False),
    ]
    assert names(vlmkit, "invoice", "--minus", "acme corp") == ["a/IMG_0002.jpg"]
    assert names(vlmkit, "invoice", "--minus", "acme zebra") == ["a/IMG_0002.jpg", "a/IMG_0001.jpg"]
    assert names(vlmkit, "invoice", "--where", "id~*0002*", "-k", 1) == ["a/IMG_0002.jpg"]
    lists = records(vlmkit("search", "--by", "words", "--queries", "-", stdin=b"zebra\nnothing\nacme\n").stdout)
    assert [(r["query"], r["rank"]) for r in lists] == [("zebra", 1), ("acme", 1)]


def test_what_words_cannot_do_is_told(vlmkit, indexed) -> None:
    for words in (["--image", "x.png"], ["--like", "y"], ["--min-score", "0.1"], ["--relative"]):
        assert words[0] in vlmkit("search", "--by", "words", "x", *words, code=2).stderr.decode()
    vlmkit("search", "--duplicates", "--by", "both", code=2)
    done = vlmkit("search", "--by", "words", "zzz", code=1)
    assert "none of 7 records has words of zzz" in done.stderr.decode()


def test_a_long_line_is_shown_where_the_words_are() -> None:
    line = "begin " + "x " * 300 + "needle " + "y " * 300
    term = Term((("needle",),))
    shown = match_line({"text": line}, find_words_of(term))["match_line"]
    assert "needle" in shown and shown[0] == shown[-1] == "…" and len(shown) <= 202


def find_words_of(term: Term):
    from vlmkit.search.words import WordHits

    return WordHits(np.array([0]), np.ones(1), np.ones(1), ((term, 1.0),))


def test_words_follow_the_records(vlmkit, indexed, tmp_path: Path) -> None:
    """Replaced, removed, merged, compacted, and dead slots."""
    first, *_ = rows(TEXTS)
    vlmkit("index", stdin=jsonl(first | {"ocr": "receipt"}))
    assert names(vlmkit, "4711", code=1) == [] and names(vlmkit, "receipt") == ["a/IMG_0001.jpg"]
    vlmkit("index", "--remove", "/p/a/IMG_0002.jpg")
    assert names(vlmkit, "zebra", code=1) == []
    vlmkit("index", "--verify")
    vlmkit("index", "-i", "./other", "--merge", "default")
    assert names(vlmkit, "receipt", "-i", "./other") == ["a/IMG_0001.jpg"]
    for n in range(9):  # most slots die
        vlmkit("index", stdin=jsonl(first | {"ocr": f"page{n}"}))
    assert names(vlmkit, "page8") == ["a/IMG_0001.jpg"] and names(vlmkit, "page7", code=1) == []
    assert names(vlmkit, "giraffe") == ["c/Paweł.png"]
    vlmkit("index", "--verify")


def write(folder: Path, texts: dict[str, dict]) -> Path:
    with Writer(folder) as writer:
        for row in rows(texts):
            writer.add(row | {"embedding": np.array(row["embedding"], np.float16)})
    return folder


def found(index: Index | Parts, *texts: str) -> list[str]:
    hits = find_words(index.words(), WordQuery.of(texts))
    return [index.record(slot)["id"].removeprefix("/p/") for slot in hits.slots[hits.order()].tolist()]


def test_an_older_index_gets_its_words(tmp_path: Path) -> None:
    folder = write(tmp_path / "i", TEXTS)
    with sqlite3.connect(folder / "index.sqlite") as db:
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name LIKE 'words%'").fetchall()
    with Index(folder) as index:
        assert found(index, "zebra") == ["a/IMG_0002.jpg"]
    with sqlite3.connect(folder / "index.sqlite") as db:
        assert db.execute("SELECT slots FROM words_covered").fetchall() == [(7,)]


def test_words_where_nobody_may_write(tmp_path: Path, monkeypatch) -> None:
    folder = write(tmp_path / "i", TEXTS)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Index(folder) as index:
        assert found(index, "zebra") == ["a/IMG_0002.jpg"]
    with sqlite3.connect(folder / "index.sqlite") as db:
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name LIKE 'words%'").fetchall()


def test_words_while_another_process_writes(tmp_path: Path) -> None:
    folder = write(tmp_path / "i", TEXTS)
    with Writer(folder) as writer, writer.transaction(), Index(folder) as index:
        assert found(index, "zebra") == ["a/IMG_0002.jpg"]
        assert not catch_up(folder, wait=False)


def test_words_as_of_the_moment_of_opening(tmp_path: Path) -> None:
    """Slots that came later are not in it, and a rewritten generation is read from the records of before."""
    folder = write(tmp_path / "i", TEXTS)
    with Index(folder) as index:
        write(folder, {"d/late.jpg": {"ocr": "zebra"}})
        catch_up(folder)
        assert found(index, "zebra") == ["a/IMG_0002.jpg"]
    with Index(folder) as index:
        with Writer(folder) as writer:
            writer.remove([(f"/p/{name}", None) for name in list(TEXTS)[1:]])
        assert found(index, "giraffe") == ["c/Paweł.png"]
    with Index(folder) as index:
        assert found(index, "giraffe") == [] and found(index, "zebra") == ["d/late.jpg"]


def test_verify_finds_wrong_words(vlmkit, tmp_path: Path) -> None:
    folder = write(tmp_path / "i", TEXTS)
    catch_up(folder)
    with sqlite3.connect(folder / "index.sqlite") as db:
        db.execute("INSERT INTO words(rowid, body) VALUES (2, 'smuggled')")
    done = vlmkit("index", "-i", folder, "--verify", code=2)
    assert "its words are not those of its records" in done.stderr.decode()


def test_parts_hide_what_later_ones_replace(tmp_path: Path) -> None:
    texts = {f"{n}.jpg": {"ocr": f"alpha word{n}"} for n in range(20)}
    newer = {f"{n}.jpg": {"ocr": f"beta word{n}"} for n in range(5, 9)}
    old, new = write(tmp_path / "old", texts), write(tmp_path / "new", newer)
    with Parts([Index(old), Index(new)]) as parts:
        assert (
            found(parts, "word6") == ["6.jpg"] and len(found(parts, "alpha")) == 16 and len(found(parts, "beta")) == 4
        )


def test_common_words_are_counted_not_fetched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("vlmkit.search.words.FETCHED", 5)
    texts = {f"{n}.jpg": {"ocr": f"common {'often ' if n < 8 else ''}{'seldom' if n == 7 else ''}"} for n in range(20)}
    with Index(write(tmp_path / "i", texts)) as index:
        assert found(index, "common seldom often") == ["7.jpg"]
        assert len(found(index, "common often")) == 5  # of those that have both
        assert len(found(index, "common")) == 5


@pytest.mark.parametrize(
    ("query", "well"),
    [
        ("invoice acme", ["a/IMG_0001.jpg"]),
        ("zebra", ["a/IMG_0002.jpg"]),
        ("a dog on a beach", []),  # no record has a dog
        ("two dogs", []),
        ("a zebra and a cat", []),  # one of two words, the other unknown: the name of another picture tells nothing
        ("an invoice of zebra and a cat", ["a/IMG_0002.jpg"]),
        ("0001 things to do", []),
    ],
)
def test_words_count_beside_meaning_where_they_match_well(tmp_path: Path, query: str, well: list[str]) -> None:
    with Index(write(tmp_path / "i", TEXTS)) as index:
        hits = finder(index, [], None, print)([query])
        slots = [] if hits is None else hits.slots.tolist()
        assert [index.record(slot)["id"].removeprefix("/p/") for slot in slots] == well


def test_records_without_a_vector_add_their_fields(vlmkit, indexed) -> None:
    before = {r["id"]: r for r in records(vlmkit("index", "--dump").stdout)}
    key = "/p/c/beach holiday.jpg"
    given = [
        {"id": key, "image": key, "caption": "a beach", "caption_model": "m@1", "mtime": 5, "model": "other@0"},
        {"id": key, "caption": "palm trees", "query": "q", "rank": 1, "score": 0.5},
        {"id": "/p/none.jpg", "caption": "x"},
        {"id": "/p/c/Paweł.png", "image": "/elsewhere.png", "caption": "x"},
    ]
    said = vlmkit("index", stdin=jsonl(*given), code=3).stderr.decode()
    assert "1 record updated" in said
    assert "/p/none.jpg: the record has no embedding, and no record in the index has its id" in said
    assert "about another picture" in said
    after = {r["id"]: r for r in records(vlmkit("index", "--dump").stdout)}
    assert after.pop(key) == before.pop(key) | {"caption": "palm trees", "caption_model": "m@1"}
    assert after == before
    assert names(vlmkit, "palm") == ["c/beach holiday.jpg"]
    vlmkit("index", "--verify")


def test_an_update_in_the_stream_of_its_record(vlmkit) -> None:
    """What comes later wins, with a vector or without."""
    row = embedded("x", [1.0, 0.0], ocr="one")
    vlmkit("index", stdin=jsonl(row, {"id": "x", "ocr": "two"}))
    assert records(vlmkit("index", "--dump").stdout)[0]["ocr"] == "two"
    vlmkit("index", stdin=jsonl({"id": "x", "ocr": "three"}, row))
    assert records(vlmkit("index", "--dump").stdout)[0]["ocr"] == "one"
    done = vlmkit("index", "-i", "./empty", stdin=jsonl({"id": "x", "ocr": "two"}), code=2)
    assert "vlmkit embed" in done.stderr.decode()


def test_a_replaced_record_tells_what_it_loses(vlmkit) -> None:
    row = embedded("x", [1.0, 0.0])
    vlmkit("index", stdin=jsonl(row | {"caption": "a dog"}))
    assert "1 record replaced others that had a caption" in vlmkit("index", stdin=jsonl(row)).stderr.decode()
    assert not vlmkit("index", stdin=jsonl(row | {"caption": "a cat"})).stderr


def test_many_slots_are_left_to_the_first_search(tmp_path: Path) -> None:
    folder = write(tmp_path / "i", TEXTS)
    assert not catch_up(folder, 6) and catch_up(folder, 7) and LEFT < FETCHED * 2
    with Index(folder) as index:
        assert open_words(index, None).count('"invoice"', 9) == 2
