"""Questions about films, and their frames through the commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="films need the extra video")

from films import plainly, shown_at
from hosted import Hosted, layout, pictures


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
