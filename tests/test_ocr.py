"""Reading what is written in pictures, held against rapidocr's own documented call; fonts of Pillow and matplotlib."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from benchmarks.words_set import written
from helpers import jsonl, records
from PIL import Image, ImageDraw

from vlmkit.models.load import load_chat_model
from vlmkit.models.ocr.base import OcrModel, text_of
from vlmkit.models.ocr.lines import Line, in_reading_order
from vlmkit.models.types import Answer, Request, Sampling

pytest.importorskip("rapidocr", reason="reading needs rapidocr")

INVOICE = ["Harbour Logistics Ltd.", "Invoice No. 2026-117", "Net amount\t1,249.50 EUR", "Total due\t1,486.91 EUR"]
SEEN = "\n".join(INVOICE).replace("\t", " ")
BLACK = ("black", "white")


@pytest.fixture(scope="module")
def engine() -> Iterator[OcrModel]:
    model = load_chat_model("rapidocr")
    assert isinstance(model, OcrModel)
    yield model


@pytest.fixture(scope="module")
def documented() -> Iterator[object]:
    """`RapidOCR()`, as its readme calls it."""
    from rapidocr import RapidOCR

    made = RapidOCR()
    logging.getLogger("RapidOCR").disabled = True
    yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures `invoice.png`, on its side by EXIF `sign.jpg`, and `blank.png` without words."""
    written(INVOICE, "DejaVuSans.ttf", 22, 0, BLACK).save(tmp_path / "invoice.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # shown a quarter turn clockwise
    written(["BEWARE OF", "THE DOG"], "", 44, 90, BLACK).save(tmp_path / "sign.jpg", exif=turned, quality=95)
    Image.new("RGB", (200, 100), "red").save(tmp_path / "blank.png")
    return tmp_path


def words(text: str) -> list[str]:
    return sorted(re.findall(r"\w", text))


@pytest.mark.parametrize(
    ("font", "size", "angle", "colors"),
    [
        ("DejaVuSerif-Italic.ttf", 24, 0, BLACK),
        ("cmtt10.ttf", 18, 0, BLACK),
        ("STIXGeneralBol.ttf", 30, 7, ("white", "#0b5394")),
        ("", 20, -3, BLACK),
    ],
)
def test_what_the_documented_call_reads(
    engine: OcrModel, documented: object, font: str, size: int, angle: int, colors: tuple[str, str]
) -> None:
    """The same characters in nearly the same places; but for spaces, and for the order of its lines."""
    page = written(INVOICE, font, size, angle, colors)
    theirs = documented(np.asarray(page)[:, :, ::-1])  # type: ignore[operator]
    rows = engine.read(page)
    assert text_of(rows) == SEEN
    assert words("".join(theirs.txts)) == words(SEEN)
    their_places = {"".join(words(text)): box for text, box in zip(theirs.txts, theirs.boxes, strict=True)}
    for line in (line for row in rows for line in row):
        there = their_places["".join(words(line.text))]
        assert np.abs(np.sort(line.quad, 0) - np.sort(there, 0)).max() < size / 2, line.text
        assert 0.9 < line.score <= 1


@pytest.mark.parametrize("angle", [90, 180, 270, 30])
def test_turned_pages_are_read_in_their_order(engine: OcrModel, angle: int) -> None:
    page = written(INVOICE, "DejaVuSans.ttf", 24, angle, BLACK)
    rows = engine.read(page)
    assert text_of(rows) == SEEN
    along = rows[0][0].direction
    assert np.degrees(np.arctan2(-along[1], along[0])) % 360 == pytest.approx(angle, abs=3)


@pytest.mark.parametrize("size", [8, 10, 200])
def test_small_and_large_letters(engine: OcrModel, size: int) -> None:
    assert text_of(engine.read(written(["Total due 4711"], "DejaVuSans.ttf", size, 0, BLACK))) == "Total due 4711"


@pytest.mark.slow
def test_small_print_of_a_large_scan(engine: OcrModel) -> None:
    """300 dots an inch, A4, letters of 5 points; the documented call reduces the page to 2,000 pixels."""
    page = Image.new("RGB", (2480, 3508), "white")
    page.paste(written(["All figures are in thousands of pounds"], "DejaVuSans.ttf", 21, 0, BLACK), (300, 3000))
    page.paste(written(["Annual report"], "DejaVuSerif.ttf", 75, 0, BLACK), (300, 200))
    assert text_of(engine.read(page)) == "Annual report\nAll figures are in thousands of pounds"


@pytest.mark.parametrize("size", [(1, 1), (65_000, 1), (3, 400), (40, 40)])
def test_no_words_is_an_answer(engine: OcrModel, size: tuple[int, int]) -> None:
    (answer,) = engine.answer([Request(pictures=[Image.new("RGB", size, "green")])], Sampling(1))
    assert answer == Answer("", "stop", 0)


def test_round_things_are_no_letters(engine: OcrModel) -> None:
    picture = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(picture).ellipse((60, 60, 190, 190), fill="blue")
    assert engine.read(picture) == []


def test_the_number_of_threads_changes_nothing(engine: OcrModel) -> None:
    pages = [written(INVOICE, "STIXGeneral.ttf", size, 0, BLACK) for size in (14, 15, 16, 17)]
    together = engine.answer([Request(pictures=[page], task="ocr-boxes") for page in pages], Sampling(1))
    assert together == [engine.answer([Request(pictures=[p], task="ocr-boxes")], Sampling(1))[0] for p in pages]


def placed(text: str, left: float, top: float, right: float, height: float = 20) -> Line:
    bottom = top + height
    return Line(text, 1.0, np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32))


def test_columns_are_read_one_after_the_other() -> None:
    """Beside a heading and a foot across both; their lines are not at one height."""
    lines = [placed("A heading across both of the columns", 0, 0, 600)]
    lines += [placed(f"left column, line number {n}", 0, 40 + 30 * n, 280) for n in range(4)]
    lines += [placed(f"right column, line number {n}", 320, 47 + 30 * n, 600) for n in range(4)]
    lines += [placed("A foot", 0, 400, 80)]
    read = [row[0].text for row in in_reading_order(lines[::-1])]
    assert read == [line.text for line in lines]


def test_a_table_is_read_by_rows() -> None:
    goods = ["espresso", "a slice of cake", "tea", "mineral water"]
    lines = [placed(name, 0, 30 * n, 60 + 10 * len(name)) for n, name in enumerate(goods)]
    lines += [placed(f"{n + 1},249.50 EUR", 400, 30 * n + 3, 520) for n in range(4)]
    rows = in_reading_order(lines)
    assert [[line.text for line in row] for row in rows] == [[g, f"{n + 1},249.50 EUR"] for n, g in enumerate(goods)]


def test_ask_prints_the_lines(vlmkit, folder: Path) -> None:
    assert vlmkit("ask", "invoice.png", "--ocr").stdout.decode() == SEEN + "\n"
    done = vlmkit("ask", "blank.png", "--ocr")
    assert done.stdout == b"\n" and done.stderr == b"vlmkit: nothing is written in the picture\n"
    (row,) = records(vlmkit("ask", "invoice.png", "--ocr", "--json").stdout)
    assert row["answer"] == row["ocr"] == SEEN and row["finish"] == "stop" and 0.9 < row["confidence"] <= 1
    assert re.fullmatch(r"rapidocr@[0-9a-f]{12}", row["answer_model"])
    assert vlmkit("ask", "invoice.png", "sign.jpg", "--ocr").stdout.decode() == SEEN + "\n\nBEWARE OF\nTHE DOG\n"


def test_boxes_are_in_pixels_of_the_upright_picture(vlmkit, folder: Path) -> None:
    (row,) = records(vlmkit("ask", "sign.jpg", "--ocr", "--boxes", "--draw", "drawn.png").stdout)
    assert [box["label"] for box in row["boxes"]] == ["BEWARE OF", "THE DOG"] == row["ocr"].split("\n")
    with Image.open(folder / "drawn.png") as drawn:
        width, height = drawn.size
    assert width > height  # upright
    for box in row["boxes"]:
        x0, y0, x1, y1 = box["box"]
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height and x1 - x0 > 3 * (y1 - y0)
        assert len(box["polygon"]) == 8 and 0.9 < box["score"] <= 1


def test_a_folder_is_read_picture_by_picture(vlmkit, folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "invoice.png").read_bytes()[:500])
    done = vlmkit("ask", ".", "--ocr", "--resume", "read.jsonl", "--errors", "bad.jsonl", code=3)
    assert b"nothing is written in 1 of 3 pictures" in done.stderr
    rows = records((folder / "read.jsonl").read_bytes())
    assert {Path(row["image"]).name: row["ocr"] for row in rows} == {
        "blank.png": "",
        "invoice.png": SEEN,
        "sign.jpg": "BEWARE OF\nTHE DOG",
    }
    assert [Path(row["id"]).name for row in records((folder / "bad.jsonl").read_bytes())] == ["broken.png"]
    (folder / "broken.png").unlink()
    assert vlmkit("ask", ".", "--ocr", "--resume", "read.jsonl").stdout == b""
    assert records((folder / "read.jsonl").read_bytes()) == rows


def test_embed_adds_what_is_written(vlmkit, folder: Path) -> None:
    """The vectors are those of embed alone; `ocr` that a record brings stays, and one with a vector is read, too."""
    plain = records(vlmkit("embed", ".").stdout)
    assert all("ocr" not in row for row in plain)
    read = records(vlmkit("embed", ".", "--ocr").stdout)
    assert [row.pop("ocr") for row in read] == ["", SEEN, "BEWARE OF\nTHE DOG"]
    assert read == plain
    plain[1]["ocr"] = "said before"
    again = records(vlmkit("embed", "--ocr", stdin=jsonl(plain)).stdout)
    assert [row["ocr"] for row in again] == ["", "said before", "BEWARE OF\nTHE DOG"]
    assert b"--ocr excludes --text" in vlmkit("embed", "--ocr", "--text", stdin=b"a\n", code=2).stderr


def test_known_text_is_not_read(vlmkit, folder: Path) -> None:
    """That of records, unless the model is named or the boxes are wanted."""
    row = {"id": "a", "image": "sign.jpg", "ocr": "known\nalready"}
    for words, wanted in (((), row["ocr"]), (("-m", "rapidocr"), "BEWARE OF\nTHE DOG")):
        (found,) = records(vlmkit("ask", "--ocr", *words, stdin=jsonl([row])).stdout)
        assert found["answer"] == found["ocr"] == wanted


def test_pages_with_a_text_layer_are_not_read(vlmkit, folder: Path) -> None:
    canvas = pytest.importorskip("reportlab.pdfgen.canvas", reason="pages are written by reportlab")
    pytest.importorskip("pypdfium2", reason="pages need pypdfium2")
    made = canvas.Canvas(str(folder / "doc.pdf"))
    made.drawString(72, 700, "A layer of text")
    made.showPage()
    made.drawImage(str(folder / "invoice.png"), 72, 500)
    made.save()
    rows = records(vlmkit("ask", "doc.pdf", "--ocr", "--each", "--json").stdout)
    assert [row["ocr"] for row in rows] == ["A layer of text", SEEN]
    assert ["confidence" in row for row in rows] == [False, True]
    assert [row["ocr"] for row in records(vlmkit("embed", "doc.pdf", "--ocr").stdout)] == ["A layer of text", SEEN]


def test_what_the_engine_does_not_do(vlmkit, folder: Path, environment: dict[str, str]) -> None:
    def refused(*arguments: str) -> str:
        return vlmkit(*arguments, code=2).stderr.decode()

    assert "answers no questions" in refused("ask", "sign.jpg", "what is it?", "--ocr")
    assert "with ask --ocr, and does nothing else" in refused("ask", "sign.jpg", "what?", "-m", "rapidocr")
    assert "with ask --ocr, and does nothing else" in refused("caption", "sign.jpg", "-m", "rapidocr")
    assert "runs on the CPU" in refused("ask", "sign.jpg", "--ocr", "--device", "cuda")
    assert "cannot read text in pictures: name a model that does, such as rapidocr" in refused(
        "ask", "sign.jpg", "--ocr", "-m", "mini"
    )
    row = {"id": "a", "image": "sign.jpg", "question": "what is it?"}
    done = vlmkit("ask", "--ocr", stdin=jsonl([row]))
    assert b"those of records are not asked" in done.stderr
    environment["VLMKIT_CHAT_MODEL"] = "mini"
    assert "cannot read text in pictures" in refused("ask", "sign.jpg", "--ocr")


def test_a_missing_package_is_named(vlmkit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "rapidocr" else found(name))
    for command in ("ask", "embed"):
        done = vlmkit(command, "sign.jpg", "--ocr", code=2)
        assert (
            done.stderr == b"vlmkit: reading text in pictures needs the package rapidocr: pip install 'vlmkit[ocr]'\n"
        )
