"""Pages of PDF documents: what is drawn, read, named and found; pypdfium2 alone is what they are held against."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pypdfium2
import pytest
from faults import serving
from helpers import jsonl, picture, records, tar
from hosted import Hosted, layout
from pdfs import PAGE, document, hostile, one_page, stream
from PIL import Image, ImageChops

from vlmkit.io.images import open_picture
from vlmkit.io.parts import page_ranges
from vlmkit.io.pdf import PIXELS
from vlmkit.io.sources import SMALLEST, open_source

TEXTS = ["Quarterly report\nof a bakery", "Revenue was 117 euro", "Apples, pears\nand a well-known quince"]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return document(tmp_path / "report.pdf", *TEXTS)


def drawn(path: Path, page: int, size: int | None = None) -> Image.Image:
    """The page by the call that pypdfium2 documents."""
    document = pypdfium2.PdfDocument(path)
    document.init_forms()
    one = document[page - 1]
    width, height = one.get_size()
    scale = math.sqrt(PIXELS / (width * height))
    image = one.render(scale=min(scale, 1.6 * size / min(width, height)) if size else scale).to_pil()
    one.close()
    document.close()
    return image


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def field(value: str) -> bytes:
    """A document with a form field of this value and a note, which are annotations, on a page that is turned."""
    look = stream(f"BT /H 20 Tf 5 5 Td ({value}) Tj ET".encode(), "/Type/XObject/Subtype/Form/BBox[0 0 90 30]")
    about = f"/Type/Annot/Subtype/Widget/FT/Tx/T(f)/V({value})/Rect[10 10 100 40]/AP<</N 6 0 R>>/DA(/H 20 Tf 0 g)"
    note = "<</Type/Annot/Subtype/Square/Rect[120 20 180 80]/C[1 0 0]/IC[0 0 1]/BS<</W 3>>/F 4>>"
    page = PAGE.replace("/Contents", "/Rotate 90/UserUnit 10/Annots[5 0 R 7 0 R]/Contents")
    catalog = "/AcroForm<</Fields[5 0 R]/DR<</Font<</H<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>>>"
    return one_page(b"0 1 0 rg 0 0 9 9 re f", page, f"<<{about}>>", look, note, catalog=catalog)


def test_a_page_is_drawn_as_pypdfium2_draws_it(report: Path, tmp_path: Path) -> None:
    (tmp_path / "form.pdf").write_bytes(field("yes"))
    for path, page in ((report, 2), (tmp_path / "form.pdf", 1)):
        for size in (None, 224):
            image, width, height = open_picture(open_source(f"{path}#page={page}"), size)
            assert image.mode == "RGB" and same(image, drawn(path, page, size))
            assert (width, height) == drawn(path, page).size
    assert image.height > image.width  # turned
    assert image.getpixel((image.width // 2, round(0.75 * image.height))) == (0, 0, 255)  # the note


def test_a_page_has_no_more_pixels_than_are_allowed(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMKIT_MAX_PIXELS", "10000")
    assert math.prod(open_picture(open_source(f"{report}#page=1"))[1:]) == pytest.approx(10000, rel=0.05)


def test_each_page_is_a_record_with_its_text(vlmkit, report: Path) -> None:
    rows = records(vlmkit("embed", report).stdout)
    assert [row["id"] for row in rows] == [f"{report}#page={n}" for n in (1, 2, 3)]
    assert [(row["page"], row["ocr"], row["image"]) for row in rows] == [
        (number, text, f"{report}#page={number}") for number, text in enumerate(TEXTS, 1)
    ]
    assert {(row["bytes"], row["hash"]) for row in rows} == {(report.stat().st_size, rows[0]["hash"])}
    (one,) = records(vlmkit("embed", f"{report}#page=2").stdout)
    (again,) = records(vlmkit("embed", stdin=jsonl({"image": f"{report}#page=2"})).stdout)
    for name in ("embedding", "ocr", "page", "hash", "width", "height"):
        assert one[name] == again[name] == rows[1][name]
    document(report, "")
    assert "ocr" not in records(vlmkit("embed", report).stdout)[0]


def test_pages_are_chosen(vlmkit, report: Path) -> None:
    def chosen(pages: str) -> list[int]:
        return [row["page"] for row in records(vlmkit("embed", "--pages", pages, report.parent).stdout)]

    assert chosen("2-") == [2, 3] and chosen("3,1,1-1") == [1, 3]
    done = vlmkit("embed", "--pages", "2-7", report)
    assert [row["page"] for row in records(done.stdout)] == [2, 3]
    assert done.stderr.decode() == f"vlmkit: {report} has 3 pages: those of --pages beyond it are not there\n"
    assert b"it has 3 pages, none of them in --pages" in vlmkit("embed", "--pages", "9", report, code=2).stderr
    for wrong in ("0", "3-1", "x", "1,,2", "-"):
        assert b"not a page or a range" in vlmkit("embed", f"--pages={wrong}", report, code=2).stderr
    assert page_ranges("1-5, 7") == (range(1, 6), range(7, 8))
    assert b"the document has 3 pages" in vlmkit("embed", f"{report}#page=9", code=2).stderr
    assert b"pages are called #page=1" in vlmkit("embed", f"{report}#third", code=2).stderr


def test_what_cannot_be_read_is_named(vlmkit, report: Path, tmp_path: Path) -> None:
    from reportlab.lib.pdfencrypt import StandardEncryption

    folder = tmp_path / "in"
    folder.mkdir()
    document(folder / "locked.pdf", "secret", encrypt=StandardEncryption("key", strength=128))
    document(folder / "open.pdf", "seen by all", encrypt=StandardEncryption("", "owner", strength=128))
    (folder / "empty.pdf").touch()
    (folder / "text.pdf").write_text("no document")
    (folder / "cut.pdf").write_bytes(report.read_bytes().rpartition(b"startxref")[0])
    done = vlmkit("embed", folder, code=3)
    assert [row["ocr"] for row in records(done.stdout)] == [*TEXTS, "seen by all"]
    told = done.stderr.decode()
    assert "locked.pdf: it is encrypted with a password: left out, save a copy without the password" in told
    assert "empty.pdf: the file is empty" in told and "text.pdf: not a PDF document that can be read" in told
    assert "cut.pdf: the file ends too early: it has 3 pages, what stood behind is lost" in told
    for name in ("locked", "empty", "text"):
        assert vlmkit("embed", folder / f"{name}.pdf", code=2).stdout == b""


def test_pages_are_found_by_words_and_pictures(vlmkit, report: Path) -> None:
    vlmkit("index", stdin=vlmkit("embed", report).stdout)
    (first, *_) = records(vlmkit("search", "--image", f"{report}#page=3", "-k", "1").stdout)
    assert first["id"] == f"{report}#page=3" and first["score"] > 0.99
    (second,) = records(vlmkit("search", "a page", "--where", "page=2").stdout)
    assert second["ocr"] == TEXTS[1]
    html = report.parent / "out.html"
    vlmkit("search", "a page", "--html", html)
    assert html.read_text().count("data:image/") >= 3


def test_changed_knows_documents_without_drawing_them(vlmkit, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlmkit("index", stdin=vlmkit("embed", report).stdout)
    from vlmkit.io import pdf

    asked: list[str] = []
    ask = pdf._ask
    monkeypatch.setattr(pdf, "_ask", lambda does, *rest, **more: asked.append(does) or ask(does, *rest, **more))
    assert vlmkit("embed", "--changed", "default", report.parent).stdout == b""
    moved = report.rename(report.with_name("moved.pdf"))
    rows = records(vlmkit("embed", "--changed", "default", report.parent).stdout)
    assert [row["id"] for row in rows] == [f"{moved}#page={n}" for n in (1, 2, 3)]
    assert [row["ocr"] for row in rows] == TEXTS and "draw" not in asked
    vlmkit("index", "--prune", report.parent, stdin=jsonl(*rows))
    assert [row["page"] for row in records(vlmkit("index", "--dump").stdout)] == [1, 2, 3]
    document(moved, *TEXTS[:2])
    assert len(records(vlmkit("embed", "--changed", "default", moved).stdout)) == 2


def test_one_question_is_about_all_pages(vlmkit, hosted: Hosted, report: Path, tmp_path: Path) -> None:
    model = ["-m", "openai:tiny", "--base-url", hosted.url]
    assert vlmkit("ask", report, "what is it?", *model).stdout == b"heard: what is it?\n"
    picture(tmp_path / "a.png", size=(28, 28))
    other = document(tmp_path / "other.pdf", "one")
    vlmkit("ask", report, tmp_path / "a.png", other, "and here?", *model, "--pages", "1-2")
    page = "1085x1536"
    assert [layout(body["messages"][-1]) for body in hosted.received] == [
        f"page 1: + {page} + page 2: + {page} + page 3: + {page} + what is it?",
        f"report.pdf, page 1: + {page} + report.pdf, page 2: + {page} + a.png: + 28x28 + other.pdf, page 1: + {page} + "
        "and here?",
    ]
    rows = records(vlmkit("ask", report, "what?", *model, "--each").stdout)
    assert [(row["id"], row["page"]) for row in rows] == [(f"{report}#page={n}", n) for n in (1, 2, 3)]
    (row,) = records(vlmkit("ask", report, "what?", *model, "--json").stdout)
    assert (row["id"], row["images"]) == (str(report), [f"{report}#page={n}" for n in (1, 2, 3)])
    rows = records(vlmkit("ask", tmp_path, "in a folder?", *model).stdout)
    assert [row["id"] for row in rows] == [str(tmp_path / "a.png"), f"{other}#page=1", str(report)]
    rows = records(vlmkit("caption", report, *model).stdout)
    assert [row["id"] for row in rows] == [f"{report}#page={n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("refusal", ["At most 2 image(s) may be provided", "maximum context length is 9 tokens"])
def test_pages_that_a_model_does_not_take_are_told(vlmkit, hosted: Hosted, report: Path, refusal: str) -> None:
    model = ["-m", "openai:tiny", "--base-url", hosted.url]
    told = f"vlmkit: {report}: the model takes no more, it got page 1 to page 2 of 3: "
    done = vlmkit("ask", report, "what?", *model, "--option", "max_pictures=2")
    assert done.stderr.decode().startswith(told) and layout(hosted.received[-1]["messages"][-1]).count(":") == 2
    document(report, *TEXTS, "fourth")
    done = vlmkit("ask", report, f"crowds {refusal}", *model)
    assert done.stdout == b"saw 2\n" and "it got page 1 to page 2 of 4" in done.stderr.decode()


def test_a_model_of_one_picture_is_asked_about_the_page_that_matches(vlmkit, report: Path) -> None:
    done = vlmkit("ask", report, "what was the revenue?", "--json")
    (row,) = records(done.stdout)
    assert (row["id"], row["image"], row["page"]) == (str(report), f"{report}#page=2", 2)
    assert done.stderr.decode() == (
        f"vlmkit: {report}: mini takes one picture: of 3 it is asked about the best-matching one, page 2\n"
    )
    assert not vlmkit("ask", report, "a bakery?", "--pages", "1", "--json").stderr


def test_questions_of_a_file_are_one_record_each(vlmkit, hosted: Hosted, report: Path, tmp_path: Path) -> None:
    model = ["-m", "openai:tiny", "--base-url", hosted.url]
    (tmp_path / "q.txt").write_text("\ufeffwho wrote it?\n\n  when?  \n")
    (tmp_path / "q.jsonl").write_bytes(jsonl({"question": "who wrote it?"}, {"question": "when?"}))
    picture(tmp_path / "a.png", size=(28, 28))
    for name in ("q.txt", "q.jsonl"):
        rows = records(vlmkit("ask", report, "--questions", name, *model).stdout)
        assert [(row["id"], row["question"]) for row in rows] == [(str(report), q) for q in ("who wrote it?", "when?")]
    rows = records(vlmkit("ask", "a.png", "--questions", "q.txt", *model).stdout)
    assert [row["answer"] for row in rows] == ["heard: who wrote it?", "heard: when?"]
    (tmp_path / "none.txt").write_text(" \n")
    assert b"holds no question" in vlmkit("ask", report, "--questions", "none.txt", *model, code=2).stderr
    assert b"excludes a question" in vlmkit("ask", report, "why?", "--questions", "q.txt", *model, code=2).stderr


def test_pages_of_several_questions_are_drawn_once(
    vlmkit, hosted: Hosted, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmkit.io import pdf

    drawn: list[int] = []
    ask = pdf._ask
    monkeypatch.setattr(
        pdf, "_ask", lambda does, *a, **b: (does == "draw" and drawn.append(b["number"])) or ask(does, *a, **b)
    )
    (tmp_path / "q.txt").write_text("one?\ntwo?\nthree?\n")
    vlmkit("ask", report, "--questions", "q.txt", "-m", "openai:tiny", "--base-url", hosted.url)
    assert sorted(drawn) == [1, 2, 3] and len(hosted.received) == 3


def test_documents_in_tars_are_read_and_those_by_url_told(
    vlmkit, report: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    data, other = report.read_bytes(), document(tmp_path / "b.pdf", "another", "report").read_bytes()
    shard = tar(tmp_path / "x.tar", {"a/report.pdf": data, "b.pdf": other})
    rows = records(vlmkit("embed", "x.tar").stdout)
    assert [row["id"] for row in rows] == [
        *(f"{shard}/a/report.pdf#page={number}" for number in (1, 2, 3)),
        *(f"{shard}/b.pdf#page={number}" for number in (1, 2)),
    ]
    assert [row["ocr"] for row in rows] == [*TEXTS, "another", "report"]
    assert records(vlmkit("embed", rows[1]["id"]).stdout)[0]["embedding"] == rows[1]["embedding"]
    asked = records(vlmkit("ask", shard, "what was the revenue?").stdout)
    assert [row["id"] for row in asked] == [f"{shard}/a/report.pdf", f"{shard}/b.pdf"] and asked[0]["page"] == 2
    for name in [name for name in environment if name.lower().endswith("_proxy")]:
        del environment[name]
    with serving() as server:
        server.files["/report.pdf"] = data
        url = f"http://127.0.0.1:{server.server_port}/report.pdf"
        done = vlmkit("embed", url, "--allow-private", code=2)
        assert f"{url}: a PDF document, not a picture that can be read" in done.stderr.decode()
        (tmp_path / "urls.txt").write_text(url)
        vlmkit("download", "urls.txt", "-o", "got", "--allow-private")
        assert [row["ocr"] for row in records(vlmkit("embed", "got/records.jsonl").stdout)] == TEXTS


@pytest.mark.slow
def test_hostile_documents_neither_crash_nor_hang(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in hostile().items():
        (folder / f"{name}.pdf").write_bytes(data)
    document(folder / "z.pdf", "the last one")
    code = "from vlmkit.io import pdf; pdf.SECONDS = 5; from vlmkit.__main__ import run; run()"
    words = [sys.executable, "-c", code, "embed", folder, "--pages", "1-20"]
    own = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([*map(str, words)], capture_output=True, timeout=120, env=own)
    assert done.returncode == 3, done.stderr.decode()
    rows, told = records(done.stdout), done.stderr.decode()
    assert rows[-1]["ocr"] == "the last one"
    assert "forms that double.pdf#page=1: a page of it takes more than" in told
    assert "1 pdf" in told, "of which there is a header alone"
    bodies = [name for name, data in hostile().items() if len(data) >= SMALLEST or not data.startswith(b"%PDF-")]
    assert all(name in told or any(f"/{name}.pdf" in row["id"] for row in rows) for name in bodies)
    assert json.dumps(told).isascii() and "Traceback" not in told
