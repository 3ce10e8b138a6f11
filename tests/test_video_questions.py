"""Questions about films, and their frames through the commands."""

import importlib.util
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="films need the extra video")

from films import plainly, shown_at
from hosted import Hosted, layout, pictures
from serving import Served


@pytest.fixture
def asked(environment: dict[str, str], hosted: Hosted) -> Hosted:
    """An endpoint that the commands of this test ask."""
    environment |= {"VLMKIT_CHAT_MODEL": "openai:tiny", "OPENAI_BASE_URL": hosted.url}
    return hosted


def rows(text: bytes) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_film_is_one_question_of_frames_in_order_with_their_times(films: Path, vlmkit, asked: Hosted) -> None:
    film = films / "plain.mp4"
    (row,) = rows(vlmkit("ask", film, "what happens?", "--every", "1s", "--json").stdout)
    assert row["id"] == str(film)
    assert row["images"] == [f"{film}#t={time}" for time in (0, 1, 2)]
    (body,) = asked.received
    message = body["messages"][-1]
    frames = " + ".join(f"frame at 0:0{second}: + 96x64" for second in range(3))
    assert layout(message) == f"{frames} + what happens?"
    plain = plainly(film)
    for second, sent in enumerate(pictures(body)):
        expected = shown_at(plain, second).astype(int)
        assert np.abs(np.asarray(sent.convert("RGB")).astype(int) - expected).mean() < 3


def test_eight_frames_spread_unless_others_are_wanted(films: Path, vlmkit, asked: Hosted) -> None:
    film = films / "no-keys.mkv"
    vlmkit("ask", film, "what happens?")
    vlmkit("ask", film, "what happens?", "--frames", 3)
    eight, three = (len(pictures(body)) for body in asked.received)
    assert (eight, three) == (8, 3)
    assert "frame at 0:01.9:" in layout(asked.received[0]["messages"][-1])


def test_a_folder_of_films_is_one_question_a_film(films: Path, tmp_path: Path, vlmkit, asked: Hosted) -> None:
    (tmp_path / "in").mkdir()
    for name in ("plain.mp4", "uneven.mp4"):
        shutil.copy(films / name, tmp_path / "in")
    found = rows(vlmkit("ask", "in", "what happens?", "--frames", 2).stdout)
    assert [row["id"] for row in found] == [str(tmp_path / "in" / name) for name in ("plain.mp4", "uneven.mp4")]
    assert all(len(row["images"]) == 2 for row in found)
    assert len(rows(vlmkit("ask", "in", "what is it?", "--each", "--every", "1s").stdout)) > 6


def test_a_cut_film_is_asked_about_as_far_as_it_goes(films: Path, tmp_path: Path, vlmkit, asked: Hosted) -> None:
    data = (films / "no-keys.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    done = vlmkit("ask", "cut.mkv", "what happens?", code=3)
    assert done.stdout.strip()
    assert b"breaks off after" in done.stderr
    assert 2 <= len(pictures(asked.received[0])) < 8


def test_a_model_of_one_picture_is_asked_about_one_frame_and_says_which(films: Path, vlmkit) -> None:
    done = vlmkit("ask", films / "plain.mp4", "what is it?", "--json")
    (row,) = rows(done.stdout)
    assert row["id"] == str(films / "plain.mp4")
    assert row["image"].endswith(f"#t={row['time']:g}")
    assert b"of 8 it is asked about the best-matching one, frame at 0:0" in done.stderr


def test_frames_through_the_commands(films: Path, tmp_path: Path, vlmkit) -> None:
    """embed, index, search by a frame, caption, classify, and a page of hits with thumbnails."""
    film = films / "plain.mp4"
    embedded = vlmkit("embed", film, "--every", "1s").stdout
    vlmkit("index", "-i", "./i", stdin=embedded)
    (best,) = rows(vlmkit("search", "-i", "./i", "--image", f"{film}#t=2", "-k", 1, "--json").stdout)
    assert (best["image"], best["time"], best["width"]) == (f"{film}#t=2", 2.0, 96)
    assert best["score"] > 0.99
    captioned = rows(vlmkit("caption", film, "--every", "1s").stdout)
    assert [row["time"] for row in captioned] == [0, 1, 2]
    assert all(row["caption"] for row in captioned)
    assert vlmkit("caption", f"{film}#t=1").stdout.decode().strip() == captioned[1]["caption"]
    (labelled,) = rows(vlmkit("classify", f"{film}#t=1", "--labels", "red,green", "--json").stdout)
    assert labelled["label"] in ("red", "green")
    vlmkit("search", "-i", "./i", "--image", f"{film}#t=2", "--html", "hits.html")
    assert (tmp_path / "hits.html").read_text().count("data:image/") == 3
    listed = vlmkit("embed", "-", stdin=f"{film}#t=0\n{film}#t=1\n".encode()).stdout
    assert [row["embedding"] for row in rows(listed)] == [row["embedding"] for row in rows(embedded)[:2]]


def test_frames_of_films_that_are_gone_are_pruned(films: Path, tmp_path: Path, vlmkit) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("plain.mp4", "plain.avi"):
        shutil.copy(films / name, folder)
    vlmkit("index", "-i", "./i", stdin=vlmkit("embed", folder, "--every", "1s").stdout)
    (folder / "plain.avi").unlink()
    assert b"3 records pruned" in vlmkit("index", "-i", "./i", "--prune", folder).stderr
    assert len(rows(vlmkit("index", "-i", "./i", "--dump").stdout)) == 3


def test_films_in_a_tar_bring_the_fields_of_their_sample(films: Path, tmp_path: Path, vlmkit, asked: Hosted) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        for name, data in {"a.json": b'{"licence": "CC0"}', "a.mp4": (films / "plain.mp4").read_bytes()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    embedded = rows(vlmkit("embed", "x.tar", "--every", "1s").stdout)
    assert [row["image"] for row in embedded] == [f"{tmp_path}/x.tar/a.mp4#t={time}" for time in (0, 1, 2)]
    assert {row["licence"] for row in embedded} == {"CC0"}
    alone = rows(vlmkit("embed", films / "plain.mp4", "--every", "1s").stdout)
    assert [row["embedding"] for row in alone] == [row["embedding"] for row in embedded]
    assert rows(vlmkit("embed", "x.tar/a.mp4#t=1").stdout)[0]["embedding"] == alone[1]["embedding"]
    vlmkit("index", "-i", "./i", stdin=vlmkit("embed", "x.tar", "--every", "1s").stdout)
    assert vlmkit("embed", "--changed", "./i", "x.tar", "--every", "1s").stdout == b""


def test_without_pyav_films_are_counted_and_pip_is_told(films: Path, tmp_path: Path, vlmkit, monkeypatch) -> None:
    from vlmkit.io import sources

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "av" else find(name, *of))
    sources._missing_extra.cache_clear()
    try:
        folder = vlmkit("embed", films).stderr
        named = vlmkit("embed", films / "plain.mp4", code=2).stderr
        frame = vlmkit("embed", f"{films / 'plain.mp4'}#t=1", code=2).stderr
    finally:
        sources._missing_extra.cache_clear()
    assert folder.startswith(b"vlmkit: not read: ") and folder.count(b"\n") == 1
    assert b"video (avi, m2ts, mkv, mov, mp4, mpg, webm): pip install 'vlmkit[video]'" in folder
    assert all(b"needs one more package: pip install 'vlmkit[video]'" in said for said in (named, frame))


def test_the_page_of_the_service_shows_frames(films: Path, tmp_path: Path, vlmkit, environment: dict[str, str]) -> None:
    image = f"{films / 'plain.mp4'}#t=1"
    vlmkit("index", stdin=vlmkit("embed", image).stdout)
    with closing_service(tmp_path, environment) as service:
        for path in ("thumbnail", "original"):
            found = service.get(f"/{path}?id={quote(image, safe='')}")
            assert found.status_code == 200, found.text
            shown = np.asarray(Image.open(io.BytesIO(found.content)).convert("RGB")).astype(int)
            assert np.abs(shown.mean((0, 1)) - shown_at(plainly(films / "plain.mp4"), 1).mean((0, 1))).max() < 4


@contextmanager
def closing_service(folder: Path, environment: dict[str, str]) -> Iterator[Served]:
    service = Served(folder, environment)
    try:
        yield service
    finally:
        service.end()
