"""embed --changed | index: what was moved or renamed keeps its vector, and its old record goes."""

import shutil
from pathlib import Path

import pytest
from helpers import embedded, jsonl, picture, records, tar
from reportlab.pdfgen import canvas

AXIS = [1.0, 0.0]


@pytest.fixture
def nightly(vlmkit, tmp_path: Path):
    """Names below `tmp_path` in the index after a run over `inputs`, and what both commands said."""

    def run(*inputs: str, code: int = 0) -> tuple[list[str], str]:
        made = vlmkit("embed", "--changed", "./i", *inputs, code=code)
        done = vlmkit("index", "-i", "./i", stdin=made.stdout)
        rows = records(vlmkit("index", "-i", "./i", "--dump").stdout)
        assert not any("moved_from" in row for row in rows)
        said = (made.stderr + done.stderr).decode().replace(f"{tmp_path}/", "")
        return sorted(row["id"].removeprefix(f"{tmp_path}/") for row in rows), said

    return run


def test_records_follow_their_files(nightly, tmp_path: Path) -> None:
    for number, color in enumerate(("red", "green", "blue", "gray", "white")):
        picture(tmp_path / f"in/{number}.png", color)
    picture(tmp_path / "in/sub/5.png", "black")
    nightly("in")
    (tmp_path / "in/0.png").rename(tmp_path / "in/renamed.png")
    (tmp_path / "in/1.png").rename(tmp_path / "in/sub/moved.png")
    (tmp_path / "in/sub").rename(tmp_path / "in/other")
    (tmp_path / "in/2.png").touch()
    shutil.copy(tmp_path / "in/3.png", tmp_path / "in/3 copy.png")
    names, said = nightly("in")
    wanted = ["2.png", "3 copy.png", "3.png", "4.png", "other/5.png", "other/moved.png", "renamed.png"]
    assert names == [f"in/{name}" for name in wanted]
    assert "3 moved, 2 copied or touched: they keep the vectors" in said and "3 records followed files" in said
    assert nightly("in") == (names, "")


def test_one_of_several_copies_moves(nightly, tmp_path: Path) -> None:
    """The copy that is gone is what moved, whichever the index names first; and it moved once."""
    for name in "abcd":
        picture(tmp_path / f"in/{name}.png", "red")
    nightly("in")
    (tmp_path / "in/c.png").rename(tmp_path / "in/new.png")
    shutil.copy(tmp_path / "in/a.png", tmp_path / "in/new2.png")
    names, said = nightly("in")
    assert names == [f"in/{name}.png" for name in ("a", "b", "d", "new", "new2")]
    assert "1 moved, 1 copied or touched" in said


def test_tars_and_pages_move(nightly, vlmkit, tmp_path: Path) -> None:
    pdfium = pytest.importorskip("pypdfium2", reason="pages need pypdfium2")
    jpegs = {name: picture(tmp_path / f"out/{name}.png", name).read_bytes() for name in ("red", "blue")}
    (tmp_path / "in").mkdir()
    tar(tmp_path / "in/s.tar", {f"{name}.png": data for name, data in jpegs.items()})
    document = pdfium.PdfDocument.new()
    for width in (200, 300):
        document.new_page(width, 200)
    document.save(tmp_path / "in/d.pdf")
    picture(tmp_path / "in/z.png", "green")
    nightly("in")
    for before, after in (("s.tar", "t.tar"), ("d.pdf", "e#1.pdf")):
        (tmp_path / "in" / before).rename(tmp_path / "in" / after)
    rows = records(vlmkit("embed", "--changed", "./i", "in").stdout)
    assert [row.get("page") for row in rows] == [1, 2, None, None] and all("moved_from" in row for row in rows)
    assert [(row["width"] > row["height"] * 1.2) for row in rows[:2]] == [False, True]
    names, said = nightly("in")
    assert names == ["in/e#1.pdf#page=1", "in/e#1.pdf#page=2", "in/t.tar/blue.png", "in/t.tar/red.png", "in/z.png"]
    assert "4 moved: they keep" in said


def test_pages_are_not_drawn_to_be_known_again(vlmkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pdfium = pytest.importorskip("pypdfium2", reason="pages need pypdfium2")
    document = pdfium.PdfDocument.new()
    document.new_page(200, 200)
    document.save(tmp_path / "d.pdf")
    vlmkit("index", "-i", "./i", stdin=vlmkit("embed", "d.pdf").stdout)
    (tmp_path / "d.pdf").rename(tmp_path / "e.pdf")
    monkeypatch.setattr("vlmkit.io.pdf.Page.image", None)
    (row,) = records(vlmkit("embed", "--changed", "./i", "e.pdf").stdout)
    assert row["moved_from"].endswith("d.pdf#page=1") and row["width"]


def test_a_place_that_may_not_be_mounted(nightly, vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "drive/a.png")
    (tmp_path / "out").mkdir()
    nightly("drive")
    (tmp_path / "drive/a.png").rename(tmp_path / "out/a.png")
    names, said = nightly("out")
    assert names == ["drive/a.png", "out/a.png"]
    assert "1 may have moved, but drive is empty: their old records stay" in said
    assert "1 record pruned" in vlmkit("index", "-i", "./i", "--prune", "drive", "--force").stderr.decode()


def test_only_what_is_gone_and_the_same_is_dropped(vlmkit, tmp_path: Path) -> None:
    here = picture(tmp_path / "here.png")
    kept = [
        embedded("other content", AXIS, image="/gone/1.png", hash="1"),
        embedded("still here", AXIS, image=str(here), hash="2"),
        embedded("a text", AXIS, image=None, text="a", hash="3"),
    ]
    gone = embedded("gone", AXIS, image="/gone/4.png", hash="4")
    vlmkit("index", "-i", "./i", stdin=jsonl(*kept, gone))
    new = [
        embedded(f"new {number}", AXIS, image=f"/new/{number}.png", hash=digest, moved_from=before)
        for number, (before, digest) in enumerate(
            [("other content", "0"), ("still here", "2"), ("a text", "3"), ("gone", "4"), ("unknown", "5"), (7, "6")]
        )
    ]
    done = vlmkit("index", "-i", "./i", stdin=jsonl(*new))
    rows = {row["id"]: row for row in records(vlmkit("index", "-i", "./i", "--dump").stdout)}
    assert rows.keys() == {row["id"] for row in (*kept, *new)} and b"1 record followed files" in done.stderr
    assert not any("moved_from" in row for row in rows.values())
    assert not vlmkit("index", "-i", "./j", stdin=jsonl(*new)).stderr.count(b"followed")
    assert not vlmkit("index", "-q", "-i", "./i", stdin=jsonl(*new)).stderr


def test_a_folder_in_place_of_the_index_is_told(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.png")
    assert b"--changed photos: there is no such index, but a folder" in vlmkit("embed", "--changed", "photos").stderr
    assert not vlmkit("embed", "-q", "--changed", "./photos", "photos").stderr


def pdf(path: Path, *words: str) -> None:
    pages = canvas.Canvas(str(path), pagesize=(300, 200))
    for word in words:
        pages.drawString(20, 100, word)
        pages.showPage()
    pages.save()


def test_pages_that_a_document_no_longer_has_are_dropped(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pdf(tmp_path / "in/a.pdf", "one", "two", "three")
    pdf(tmp_path / "in/a.pdf.pdf", "other")
    vlmkit("index", "-i", "./i", stdin=vlmkit("embed", "in").stdout)
    pdf(tmp_path / "in/a.pdf", "new")
    done = vlmkit("index", "-i", "./i", stdin=vlmkit("embed", "--changed", "./i", "in").stdout)
    assert b"2 records dropped: pages or frames that their files no longer have" in done.stderr
    rows = records(vlmkit("index", "-i", "./i", "--dump").stdout)
    found = {Path(row["image"]).name: row["ocr"] for row in rows}
    assert found == {"a.pdf.pdf#page=1": "other", "a.pdf#page=1": "new"}
    done = vlmkit("index", "-i", "./i", stdin=vlmkit("embed", "--pages", "1", "in").stdout)
    assert b"dropped" not in done.stderr


def test_what_was_embedded_without_reading_is_read(vlmkit, tmp_path: Path) -> None:
    pytest.importorskip("rapidocr", reason="rapidocr is not installed")
    picture(tmp_path / "in/a.png")
    vlmkit("index", "-i", "./i", stdin=vlmkit("embed", "in").stdout)
    assert not vlmkit("embed", "--changed", "./i", "in").stdout
    found = vlmkit("embed", "--changed", "./i", "--ocr", "in").stdout
    assert [row["ocr"] for row in records(found)] == [""]
    vlmkit("index", "-i", "./i", stdin=found)
    assert not vlmkit("embed", "--changed", "./i", "--ocr", "in").stdout
