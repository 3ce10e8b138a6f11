"""Lists of URLs become pictures and records, from a server that is not always kind."""

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SCRIPT
from faults import Faulty, serving
from helpers import jpeg, jsonl, records
from PIL import Image

COLORS = ["red", "green", "blue", "yellow", "black", "white", "purple", "orange"]


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
    assert set(server.hits.values()) == {1} and len(read(tmp_path / "out/records.jsonl")) == len(COLORS)


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
