"""Lists of URLs become pictures and records, from a server that is not always kind."""

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import av
import pytest
from conftest import SCRIPT
from faults import Faulty, serving
from helpers import jpeg, jsonl, records
from PIL import Image

from vlmkit.io.files import lock

COLORS = ["red", "green", "blue", "yellow", "black", "white", "purple", "orange"]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20" fill="red"/></svg>'


def png(color: str, size: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def server(environment: dict[str, str]) -> Iterator[Faulty]:
    for name in [name for name in environment if name.lower().endswith("_proxy")]:
        del environment[name]
    with serving() as faulty:
        faulty.files |= {f"/{color}.jpg": jpeg(color, (40 + i, 30)) for i, color in enumerate(COLORS)}
        yield faulty


def rows(server: Faulty, colors: list[str] = COLORS) -> list[dict]:
    return [{"id": c, "url": f"{server.base}/{c}.jpg", "captions": [f"all {c}"], "n": i} for i, c in enumerate(colors)]


def read(path: Path) -> list[dict]:
    return records(path.read_bytes())


def test_pictures_and_records(vlmkit, tmp_path: Path, server: Faulty) -> None:
    (tmp_path / "urls.jsonl").write_bytes(jsonl(*rows(server)))
    done = vlmkit("download", "urls.jsonl", "-o", "out", "--allow-private")
    assert done.stdout == b"" and done.stderr == b""
    found = read(tmp_path / "out/records.jsonl")
    for i, (row, record) in enumerate(zip(rows(server), found, strict=True)):
        picture = Path(record.pop("image"))
        assert picture.is_absolute() and picture.read_bytes() == server.files[f"/{row['id']}.jpg"]
        assert record == {**row, "bytes": picture.stat().st_size, "width": 40 + i, "height": 30}
    embedded = vlmkit("embed", "out/records.jsonl")
    assert [row["captions"] for row in records(embedded.stdout)] == [row["captions"] for row in found]


def test_what_is_there_is_not_fetched_again(vlmkit, tmp_path: Path, server: Faulty) -> None:
    """Also of one URL in several rows, and of a longer list."""
    twice = [*rows(server, COLORS[:3]), {"id": "again", "url": f"{server.base}/red.jpg"}]
    (tmp_path / "urls.jsonl").write_bytes(jsonl(*twice))
    vlmkit("download", "urls.jsonl", "-o", "out", "--allow-private")
    first = (tmp_path / "out/records.jsonl").read_bytes()
    vlmkit("download", "urls.jsonl", "-o", "out", "--allow-private")
    assert (tmp_path / "out/records.jsonl").read_bytes() == first
    vlmkit("download", "-", "-o", "out", "--allow-private", stdin=jsonl(*rows(server)))
    found = [row["id"] for row in read(tmp_path / "out/records.jsonl")]
    assert set(server.hits.values()) == {1} and found == [*COLORS[:3], "again", *COLORS[3:]]


def test_failures_are_named_and_tried_again_on_request(vlmkit, tmp_path: Path, server: Faulty) -> None:
    server.files |= {"/page.jpg": b"<!DOCTYPE html><title>gone</title>", "/half.jpg": jpeg("red", (400, 300))[:2000]}
    server.files["/drawing.jpg"] = png("red", (20, 10))
    server.faults |= {"/red.jpg": ("500", 2), "/blue.jpg": ("500", 3), "/green.jpg": ("429", 1)}
    names = ["red", "green", "blue", "page", "half", "missing", "drawing"]
    bad = [{"id": "no url"}, {"id": "ftp", "url": "ftp://a.example/b.jpg"}]
    (tmp_path / "urls.jsonl").write_bytes(jsonl(*rows(server, names), *bad) + b"{torn")
    out = ("download", "urls.jsonl", "-o", "out", "--allow-private", "--errors", "failed.jsonl")
    vlmkit(*out, code=3)
    assert [row["id"] for row in read(tmp_path / "out/records.jsonl")] == ["red", "green", "drawing"]
    suffixes = {row["id"]: Path(row["image"]).suffix for row in read(tmp_path / "out/records.jsonl")}
    assert suffixes == {"red": ".jpg", "green": ".jpg", "drawing": ".png"}
    failed = {row["id"]: row["error"] for row in read(tmp_path / "failed.jsonl")}
    expected = {"blue": "HTTP 500", "page": "web page", "half": "truncated", "missing": "404", "no url": "no url"}
    assert {name: text for name, text in expected.items() if text not in failed.get(name, "")} == {}
    assert set(failed) == {*expected, "ftp", f"{tmp_path}/urls.jsonl:10"}
    assert server.hits["/missing.jpg"] == 1 and server.hits["/blue.jpg"] == 3
    server.files["/missing.jpg"] = jpeg("white")
    (tmp_path / "some.jsonl").write_bytes(jsonl({"id": "missing", "image": None, "error": "HTTP 404"}))
    hits = dict(server.hits)
    vlmkit(*out, "--retry", "some.jsonl", code=3)
    assert [row["id"] for row in read(tmp_path / "out/records.jsonl")] == ["red", "green", "missing", "drawing"]
    assert {name for name, count in server.hits.items() if count != hits[name]} == {"/missing.jpg"}
    (tmp_path / "other.jsonl").write_bytes(jsonl({"error": "no id"}))
    assert b"not a list of failed records" in vlmkit(*out, "--retry", "other.jsonl", code=2).stderr


def test_a_server_that_asks_to_be_left_alone_is(vlmkit, tmp_path: Path, server: Faulty) -> None:
    tags = {"red": "noai", "green": "NoIndex, nofollow", "blue": "otherbot: noindex", "yellow": "nofollow"}
    tags |= {"black": "vlmkit: noimageai", "white": "unavailable_after: 25 Jun 2027 15:00:00 PST", "purple": "all"}
    server.headers |= {f"/{color}.jpg": {"X-Robots-Tag": tag} for color, tag in tags.items()}
    stdin = jsonl(*rows(server))
    vlmkit("download", "-", "-o", "out", "--allow-private", "--errors", "failed.jsonl", code=3, stdin=stdin)
    failed = {row["id"]: row["error"] for row in read(tmp_path / "failed.jsonl")}
    assert set(failed) == {"red", "green", "black"} and all("X-Robots-Tag" in text for text in failed.values())
    assert server.sent["/red.jpg"] <= len(server.files["/red.jpg"])


def test_no_private_address_without_being_reported(vlmkit, tmp_path: Path, server: Faulty) -> None:
    done = vlmkit("download", "-", "-o", "out", code=3, stdin=jsonl(*rows(server)))
    assert done.stderr.count(b"--allow-private") == len(COLORS) and server.hits.total() == 0


def test_resize(vlmkit, tmp_path: Path, server: Faulty) -> None:
    """Sides longer than that become that long; smaller pictures keep their bytes; EXIF orientation is applied."""
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100), "red").save(turned, "JPEG", exif=exif)
    server.files |= {"/turned.jpg": turned.getvalue(), "/large.jpg": png("blue", (300, 150))}
    stdin = jsonl(*rows(server, ["turned", "large", "red"]))
    vlmkit("download", "-", "-o", "out", "--allow-private", "--resize", "64", stdin=stdin)
    found = read(tmp_path / "out/records.jsonl")
    assert [(row["width"], row["height"]) for row in found] == [(32, 64), (64, 32), (40, 30)]
    for row in found:
        with Image.open(row["image"]) as image:
            assert image.size == (row["width"], row["height"]) and image.format == "JPEG"
    assert Path(found[2]["image"]).read_bytes() == server.files["/red.jpg"]


def test_shards(vlmkit, tmp_path: Path, server: Faulty) -> None:
    """Three rows a shard; what failed is fetched alone by the next run, and then nothing is."""
    (tmp_path / "urls.jsonl").write_bytes(jsonl(*rows(server)))
    blue = server.files.pop("/blue.jpg")
    out = ("download", "urls.jsonl", "-o", "out", "--allow-private", "--tar", "3")
    vlmkit(*out, code=3)
    server.files["/blue.jpg"] = blue
    hits = dict(server.hits)
    vlmkit(*out)
    assert {name for name, count in server.hits.items() if count != hits[name]} == {"/blue.jpg"}
    found = read(tmp_path / "out/records.jsonl")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    vlmkit(*out)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(before) == ["00000.tar", "00001.tar", "00002.tar", "records.jsonl"]
    assert [row["id"] for row in found] == COLORS
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        assert tar.getnames() == [f"00000{i}.{end}" for i in range(3) for end in ("jpg", "json")]
        member = tar.extractfile("000002.json")
        assert member is not None and json.load(member)["captions"] == ["all blue"]
    embedded = records(vlmkit("embed", "out/00000.tar", "out/00001.tar", "out/00002.tar").stdout)
    assert [(row["sample_id"], row["image"], row["captions"]) for row in embedded] == [
        (row["id"], row["image"], row["captions"]) for row in found
    ]


@pytest.mark.parametrize("form", [[], ["--tar", "3"], ["--tar", "1000"]])
def test_another_list_adds_to_the_folder(vlmkit, tmp_path: Path, server: Faulty, form: list[str]) -> None:
    """Other pictures, another caption of one that is there, a list without ids; and each list once more."""
    first, second = rows(server, COLORS[:4]), rows(server, COLORS[4:])
    second += [{"url": f"{server.base}/red.jpg", "captions": ["red once more"]}, {"url": f"{server.base}/blue.jpg"}]

    def fetch(some: list[dict]) -> list[dict]:
        (tmp_path / "urls.jsonl").write_bytes(jsonl(*some))
        vlmkit("download", "urls.jsonl", "-o", "out", "--allow-private", *form)
        return read(tmp_path / "out/records.jsonl")

    fetch(first)
    found = fetch(second)
    assert [(row["url"], row.get("captions")) for row in found] == [
        (row["url"], row.get("captions")) for row in first + second
    ]
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    hits = server.hits.total()
    assert hits == len(COLORS) and fetch(first) == fetch(second) == found
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert server.hits.total() == hits
    opened = records(vlmkit("embed", "out/records.jsonl").stdout)
    assert [row["id"] for row in opened] == [row["id"] for row in found]
    if form:
        tars = sorted((tmp_path / "out").glob("*.tar"))
        of_shards = records(vlmkit("embed", *tars).stdout)
        assert [(r["sample_id"], r["image"], r.get("captions")) for r in of_shards] == [
            (r["id"], r["image"], r.get("captions")) for r in found
        ]


def test_what_a_damaged_shard_lost_is_fetched_again_elsewhere(vlmkit, tmp_path: Path, server: Faulty) -> None:
    (tmp_path / "urls.jsonl").write_bytes(jsonl(*rows(server, COLORS[:4])))
    out = ("download", "urls.jsonl", "-o", "out", "--allow-private", "--tar", "4")
    vlmkit(*out)
    shard = tmp_path / "out/00000.tar"
    torn = shard.read_bytes()[:5000]
    shard.write_bytes(torn)
    done = vlmkit(*out, code=3)
    assert b"00000.tar" in done.stderr and shard.read_bytes() == torn
    found = read(tmp_path / "out/records.jsonl")
    assert [row["id"] for row in found] == COLORS[:4] and "00001.tar/" in found[3]["image"]


def test_what_else_the_records_file_holds_stays(vlmkit, tmp_path: Path, server: Faulty) -> None:
    (tmp_path / "out").mkdir()
    kept = b'{"id":"mine", "note": 1}\nnot JSON\n{"id":"last"}'
    (tmp_path / "out/records.jsonl").write_bytes(kept)
    vlmkit("download", "-", "-o", "out", "--allow-private", stdin=jsonl(*rows(server, ["red"])))
    lines = (tmp_path / "out/records.jsonl").read_bytes()
    assert lines.startswith(kept + b"\n") and lines.count(b"\n") == 4


def test_two_at_once_in_a_folder_are_refused(vlmkit, tmp_path: Path, server: Faulty) -> None:
    (tmp_path / "out").mkdir()
    with lock(tmp_path / "out"):
        done = vlmkit("download", "-", "-o", "out", "--allow-private", stdin=jsonl(*rows(server)), code=2)
    assert b"another download adds to" in done.stderr and server.hits.total() == 0


def parquet(*some: dict) -> bytes:
    from pyarrow import BufferOutputStream, Table
    from pyarrow.parquet import write_table

    out = BufferOutputStream()
    write_table(Table.from_pylist(list(some)), out)
    return out.getvalue().to_pybytes()


RED, BLUE = "BASE/red.jpg", "BASE/blue.jpg"
LISTS = {
    "plain.txt": f"\n# mine\n  {RED} \r\n\n{BLUE}\r\n".encode(),
    "plain-with-a-mark.txt": f"\ufeff{RED}\n{BLUE}".encode(),
    "one-column.csv": f"{RED}\n{BLUE}\n".encode(),
    "quoted.csv": f'n,"url",text\n1," {RED} ","a ball, ""red""\nof old"\n,{BLUE},\n'.encode(),
    "semicolons.csv": f"\ufeffURL;text\r\n{RED};x\r\n{BLUE};\r\n".encode(),
    "tabs.tsv": f"text\tUrl\na ball, red\t{RED}\n\n-\t{BLUE}\n".encode(),
    "tabs-of-a-spreadsheet.txt": f"url\ttext\n{RED}\tx\n{BLUE}\ty\n".encode("utf-16"),
    "upper.jsonl": f'{{"URL":"{RED}"}}\n{{"Url":"\\t{BLUE}\\n","n":null}}\n'.encode(),
    "array.json": f'[{{"url":"{RED}"}}, {{"image":"{BLUE}"}}]'.encode(),
    "table.parquet": b"",
}


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("name", LISTS)
def test_forms_of_lists(vlmkit, tmp_path: Path, server: Faulty, name: str, piped: bool) -> None:
    base = server.base
    if name == "table.parquet":
        rest = {"text": "x", "n": float("nan"), "raw": b"\0", "taken": date(2020, 2, 3)}
        data = parquet({"URL": f"{base}/red.jpg", **rest}, {"URL": f" {base}/blue.jpg", "text": None})
    elif name.startswith("tabs-of"):
        data = LISTS[name].decode("utf-16").replace("BASE", base).encode("utf-16")
    else:
        data = LISTS[name].replace(b"BASE", base.encode())
    (tmp_path / name).write_bytes(data)
    vlmkit("download", "-" if piped else name, "-o", "out", "--allow-private", stdin=data if piped else b"")
    found = read(tmp_path / "out/records.jsonl")
    assert [row["url"] for row in found] == [f"{base}/red.jpg", f"{base}/blue.jpg"]
    if name == "quoted.csv":
        assert (found[0]["text"], found[0]["n"]) == ('a ball, "red"\nof old', "1") and not {"text", "n"} & found[
            1
        ].keys()
    if name == "table.parquet":
        assert found[0]["taken"] == "2020-02-03" and not {"n", "raw"} & found[0].keys()


def test_the_column_of_the_urls_may_be_named(vlmkit, tmp_path: Path, server: Faulty) -> None:
    row = {"url": "http://page.example/", "link": f"{server.base}/red.jpg"}
    files = {
        "a.csv": b"url,link\n%b,%b\n" % (row["url"].encode(), row["link"].encode()),
        "a.jsonl": jsonl(row),
        "a.parquet": parquet(row),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        vlmkit("download", name, "-o", f"{name}.d", "--allow-private", "--url-column", "Link")
        (found,) = read(tmp_path / f"{name}.d/records.jsonl")
        assert (found["url"], found["list_url"]) == (row["link"], row["url"])


def test_lists_that_are_none(vlmkit, tmp_path: Path) -> None:
    """Nothing is made where no row can be read; a row that cannot fails alone."""
    for name, data, reported in [
        ("a.csv", b"caption,link\n", b"has no column url; it has caption, link"),
        ("a.tsv", b"a dog\thttp://a.example/b.jpg\n", b"add a first line"),
        ("b.csv", b"url,url\n", b"two columns url"),
        ("a.txt", b"PK\3\4\0\0", b"not an xlsx file: unpack it first"),
        ("a.parquet", b"PAR1 and no more than that", b"cannot be read"),
        ("missing.csv", None, b"no such file"),
    ]:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        done = vlmkit("download", name, "-o", "out", code=2)
        assert reported in done.stderr and done.stderr.count(b"\n") == 1 and not (tmp_path / "out").exists()
    bad = [
        b"ftp://a.example/b.jpg,x",
        b"http://a.invalid/c.jpg,a,b",
        b"\xff,d",
        b'"http://a.invalid/d.jpg" e,',
        b'"open,x',
    ]
    (tmp_path / "bad.csv").write_bytes(b"\n".join([b"url,text", *bad, b""]))
    done = vlmkit("download", "bad.csv", "-o", "out", code=3)
    assert done.stderr.count(b"left out") == done.stderr.count(b"\n") == len(bad)
    assert b"3 cells for 2 columns" in done.stderr and b"not UTF-8" in done.stderr and b"unexpected end" in done.stderr


def test_the_pace_of_a_server_is_kept(vlmkit, tmp_path: Path, server: Faulty) -> None:
    """More pauses than tries, also where a server says 403; one that is too long fails alone and is told."""
    server.faults |= {"/red.jpg": ("429", 4), "/green.jpg": ("403", 2), "/blue.jpg": ("busy for long", 9)}
    stdin = jsonl(*rows(server, ["red", "green", "blue", "yellow"]))
    done = vlmkit("download", "-", "-o", "out", "--allow-private", code=3, stdin=stdin)
    assert [row["id"] for row in read(tmp_path / "out/records.jsonl")] == ["red", "green", "yellow"]
    assert b"asks to wait 3600 seconds" in done.stderr and server.hits["/blue.jpg"] == 1


def test_a_host_is_asked_for_four_at_a_time(vlmkit, tmp_path: Path, server: Faulty) -> None:
    server.slow = 0.2
    urls = jsonl(*({"id": str(i), "url": f"{server.base}/red.jpg?{i}"} for i in range(12)))
    vlmkit("download", "-", "-o", "out", "--allow-private", stdin=urls)
    assert server.most["/red.jpg"] == 4 and server.hits["/red.jpg"] == 12


def test_a_kill_costs_nothing_that_is_there(vlmkit, environment, tmp_path: Path, server: Faulty) -> None:
    server.slow = 0.1
    urls = [{"id": str(i), "url": f"{server.base}/red.jpg?{i}"} for i in range(60)]
    (tmp_path / "urls.jsonl").write_bytes(jsonl(*urls))
    command = [SCRIPT, "download", "urls.jsonl", "-o", "out", "--allow-private"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("out/images/*.jpg"))) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    there = set(os.listdir(tmp_path / "out/images"))
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "out/records.jsonl").exists()
    whole = {name for name in there if not name.startswith(".")}
    assert 8 <= len(whole) < 60
    server.slow = 0

    def written() -> dict[str, tuple[int, int]]:
        facts = {name: (tmp_path / "out/images" / name).stat() for name in whole}
        return {name: (fact.st_ino, fact.st_mtime_ns) for name, fact in facts.items()}

    before = written()
    vlmkit("download", "urls.jsonl", "-o", "out", "--allow-private")
    assert written() == before
    assert [row["id"] for row in read(tmp_path / "out/records.jsonl")] == [row["id"] for row in urls]


def test_usage(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "urls.jsonl").write_bytes(b"")
    (tmp_path / "file").touch()
    for arguments, reported in [
        (["urls.jsonl"], b"-o DIR"),
        (["urls.jsonl", "pope", "-o", "out"], b"one list at a time"),
        (["urls.jsonl", "-o", "file"], b"file is not a folder"),
        (["missing.jsonl", "-o", "out"], b"no such file"),
        (["pope", "--tar", "3"], b"for URL lists"),
        ([], b"nothing to download"),
    ]:
        done = vlmkit("download", *arguments, code=2)
        assert reported in done.stderr and done.stderr.count(b"\n") == 1 and done.stdout == b""
    vlmkit("download", "urls.jsonl", "-o", "out")
    assert (tmp_path / "out/records.jsonl").read_bytes() == b""


def test_documents_films_and_drawings_are_fetched_and_embedded_by_page(vlmkit, tmp_path: Path, server: Faulty) -> None:
    canvas = pytest.importorskip("reportlab.pdfgen.canvas", reason="reportlab is not installed")
    pdf = io.BytesIO()
    pages = canvas.Canvas(pdf, pagesize=(300, 200))
    for word in ("Rye", "Spelt"):
        pages.drawString(20, 100, word)
        pages.showPage()
    pages.save()
    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frames = (av.VideoFrame.from_image(Image.new("RGB", (64, 48), "red")) for _ in range(10))
        container.mux([packet for frame in [*frames, None] for packet in stream.encode(frame)])
    names = ["a", "b.mp4", "c.svg", "d.pdf"]
    server.files |= {"/a": pdf.getvalue(), "/b.mp4": film.getvalue(), "/c.svg": SVG, "/d.pdf": pdf.getvalue()[:100]}
    (tmp_path / "list.jsonl").write_bytes(jsonl(*({"url": f"{server.base}/{name}", "n": name} for name in names)))
    done = vlmkit("download", "list.jsonl", "-o", "out", "--allow-private", code=3)
    assert b"d.pdf" in done.stderr and len(done.stderr.splitlines()) <= 2
    found = read(tmp_path / "out/records.jsonl")
    assert [Path(row["image"]).suffix for row in found] == [".pdf", ".mp4", ".svg"]
    assert (found[1]["width"], found[1]["height"]) == (64, 48) and found[0]["bytes"] == len(pdf.getvalue())
    made = records(vlmkit("embed", "out/records.jsonl").stdout)
    assert [row["n"] for row in made] == ["a", "a", "b.mp4", "c.svg"]
    assert [row.get("ocr") for row in made] == ["Rye", "Spelt", None, None]
    assert [row["id"].partition("#")[2] for row in made] == ["page=1", "page=2", "t=0", ""]
    before = dict(server.hits)
    vlmkit("download", "list.jsonl", "-o", "out", "--allow-private", code=3)
    assert {name for name, times in server.hits.items() if times != before.get(name)} == {"/d.pdf"}
