"""Films: their frames are pictures. What is decoded is held against plain PyAV."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="films need the extra video")

from films import ENDINGS, Made, make_sound, plainly, shown_at

from vlmkit.io.parts import Choice
from vlmkit.io.sources import PictureError, exists, is_gone, members, open_file, open_source
from vlmkit.io.video.film import Film
from vlmkit.io.video.reader import VideoReader


def opened(path: Path, name: str) -> np.ndarray:
    return np.asarray(open_source(f"{path}#{name}").image()[0])  # type: ignore[attr-defined]


def chosen(path: Path, **choice: object) -> dict[str, np.ndarray]:
    found = VideoReader().chosen(open_file(str(path)), Choice(**choice))  # type: ignore[arg-type]
    return {name: np.asarray(source.image()[0]) for name, source in found}  # type: ignore[attr-defined]


def as_written(path: Path, name: str) -> np.ndarray:
    return shown_at(plainly(path), float(name.removeprefix("t=")))


@pytest.mark.parametrize(
    "name", [*(f"plain.{ending}" for ending in ENDINGS), "uneven.mp4", "no-keys.mkv", "hdr.mp4", "phone.mov"]
)
def test_frames_are_those_that_pyav_decodes(films: Path, name: str) -> None:
    path = films / name
    frames = plainly(path)
    for choice in ({}, {"every": 0.5}, {"every": 0.25, "frames": 3}):
        found = chosen(path, **choice)
        assert found
        for number, (at, picture) in enumerate(found.items()):
            assert np.abs(picture.astype(int) - shown_at(frames, float(at[2:]))).max() <= 2, at
            assert number % 4 or np.array_equal(picture, opened(path, at)), at


def test_every_takes_what_is_shown_at_each_multiple(films: Path) -> None:
    assert list(chosen(films / "plain.mp4", every=1.0)) == ["t=0", "t=1", "t=2"]
    uneven = ["t=0", "t=0.5", "t=1", "t=1.5", "t=2.5", "t=5", "t=5.5", "t=9"]
    assert list(chosen(films / "uneven.mp4", every=0.5))[: len(uneven)] == uneven


def test_scenes_are_found_with_and_without_key_frames(films: Path) -> None:
    """One frame of each colour; of what stands still one in ten seconds."""
    assert [round(float(name[2:])) for name in chosen(films / "plain.mp4")] == [0, 1, 2]
    found = [float(name[2:]) for name in chosen(films / "no-keys.mkv")]
    assert len(found) >= 25
    assert max(np.diff([*found, 30])) <= 2


@pytest.mark.parametrize("gop", [50, 1000])
def test_one_frame_in_ten_seconds_where_nothing_changes(tmp_path: Path, gop: int) -> None:
    film = Made(scenes=[5], length=4 * 35, rate=4, gop=gop).write(tmp_path / "still.mp4")
    found = [float(name[2:]) for name in chosen(film)]
    assert 4 <= len(found) <= 8, found
    assert max(np.diff([*found, 35])) <= 10


def test_at_most_so_many_frames_spread(films: Path) -> None:
    found = [float(name[2:]) for name in chosen(films / "no-keys.mkv", frames=4)]
    assert len(found) == 4
    assert max(np.diff([0, *found, 30])) < 10
    assert list(chosen(films / "plain.mp4", every=0.1, frames=3)) == ["t=0.5", "t=1.5", "t=2.5"]


def test_a_turned_film_is_upright(films: Path) -> None:
    """The display matrix turns by 90 degrees counterclockwise: the white corner comes to the left at the bottom."""
    image, width, height = open_source(f"{films / 'turned.mp4'}#t=1.5").image()  # type: ignore[attr-defined]
    assert (image.size, width, height) == ((64, 96), 64, 96)
    plain = shown_at(plainly(films / "turned.mp4"), 1.5)
    assert np.abs(np.asarray(image).astype(int) - np.rot90(plain)).max() <= 2


def test_a_frame_is_made_small_where_that_is_enough(tmp_path: Path) -> None:
    film = Made(scenes=[3], length=5, size=(640, 360)).write(tmp_path / "wide.mp4")
    image, width, height = open_source(f"{film}#t=0").image(100)  # type: ignore[attr-defined]
    assert (width, height) == (640, 360)
    assert image.size == (285, 160)


def test_frames_know_when_and_where_they_were_taken(films: Path) -> None:
    (_, first), (_, second), *_ = members(str(films / "phone.mov"))
    place = {"camera": "Apple iPhone 15", "lat": 48.1371, "lon": 11.5753}
    assert first.fields == {"time": 0.0, "taken": "2024-05-01T12:00:00", **place}
    assert second.fields["taken"] == "2024-05-01T12:00:01"


def test_names_that_lead_nowhere(films: Path, vlmkit) -> None:
    path = str(films / "plain.mp4")
    assert exists(f"{path}#t=2.9")
    assert is_gone(f"{path}#t=99")
    assert is_gone(f"{path}#page=1")
    done = vlmkit("embed", f"{path}#t=99", code=2)
    assert b"the film ends before that time" in done.stderr


def test_what_is_cut_gives_what_is_there(films: Path, tmp_path: Path, vlmkit) -> None:
    data = (films / "no-keys.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    done = vlmkit("embed", "--every", "1s", "cut.mkv", "--errors", "errors.jsonl", code=3)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    whole = chosen(films / "no-keys.mkv", every=1.0)
    assert 5 < len(rows) < len(whole)
    assert [row["time"] for row in rows] == [float(name[2:]) for name in whole][: len(rows)]
    assert b"the film is damaged: it breaks off after 0:" in done.stderr
    assert "breaks off" in json.loads((tmp_path / "errors.jsonl").read_text())["error"]


def test_films_that_are_none(tmp_path: Path, vlmkit, films: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mkv").write_text("not a film\n" * 100)
    make_sound(tmp_path / "sound.mp4")
    done = vlmkit("embed", ".", code=3)
    assert done.stdout == b""
    for message in (b"empty.mp4: the file is empty", b"text.mkv: not a film", b"1 video (mp4)"):
        assert message in done.stderr
    assert b"sound.mp4: sound without a picture" in vlmkit("embed", "sound.mp4", code=2).stderr


def test_a_film_that_is_known_is_not_decoded(films: Path, tmp_path: Path, vlmkit, monkeypatch) -> None:
    """Unchanged, moved and touched films; what is missing, or chosen in another way, is decoded."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("plain.mp4", "phone.mov"):
        shutil.copy(films / name, folder)
    first = vlmkit("embed", "--changed", "./index", folder).stdout
    moved, touched = (first.count(f"{name}#t=".encode()) // 2 for name in ("phone.mov", "plain.mp4"))
    vlmkit("index", "-i", "./index", stdin=first)
    with monkeypatch.context() as patched:
        patched.setattr(Film, "packets", lambda *_: pytest.fail("decoded"))
        with monkeypatch.context() as closed:
            closed.setattr(Film, "_start", lambda *_: pytest.fail("opened"))
            assert vlmkit("embed", "--changed", "./index", folder).stdout == b""
        (folder / "phone.mov").rename(folder / "new.mov")
        os.utime(folder / "plain.mp4", (1, 1))
        done = vlmkit("embed", "--changed", "./index", folder)
        assert f"{moved} moved, {touched} copied or touched".encode() in done.stderr
        vlmkit("index", "-i", "./index", "--prune", folder, stdin=done.stdout)
        assert vlmkit("embed", "--changed", "./index", folder).stdout == b""
    before, after = ([json.loads(line) for line in text.splitlines()] for text in (first, done.stdout))
    assert {row["embedding"] for row in before} == {row["embedding"] for row in after}
    assert {row["image"].partition("#")[0] for row in after} == {f"{folder}/new.mov", f"{folder}/plain.mp4"}
    assert all(row["image"].endswith(f"#t={row['time']:g}") for row in after)
    known = sum(row["time"] in (0, 0.5, 1, 1.5, 2, 2.5) for row in before)
    more = vlmkit("embed", "--changed", "./index", "--every", "500ms", folder).stdout
    assert more.count(b"\n") == 12 - known


def test_films_of_live_photos_count_as_their_photos(films: Path, tmp_path: Path, vlmkit) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    shutil.copy(films / "plain.mov", folder / "IMG_1.MOV")
    shutil.copy(films / "no-keys.mkv", folder / "IMG_2.mkv")
    for name in ("IMG_1.JPG", "IMG_2.JPG"):
        Image.new("RGB", (32, 32), "red").save(folder / name)
    done = vlmkit("embed", folder, "--frames", 2)
    names = [os.path.basename(json.loads(line)["image"]).partition("#")[0] for line in done.stdout.splitlines()]
    assert names == ["IMG_1.JPG", "IMG_2.JPG", "IMG_2.mkv", "IMG_2.mkv"]
    assert b"1 film of Live Photos, with their photos" in done.stderr


def test_a_motion_photo_is_its_photo(films: Path, tmp_path: Path, vlmkit) -> None:
    written = io.BytesIO()
    Image.new("RGB", (64, 48), "green").save(written, "JPEG")
    (tmp_path / "PXL_1.MP.jpg").write_bytes(written.getvalue() + (films / "plain.mp4").read_bytes())
    (row,) = map(json.loads, vlmkit("embed", "PXL_1.MP.jpg").stdout.splitlines())
    assert (row["width"], row["height"]) == (64, 48)
    assert "time" not in row


def test_too_many_pixels_are_refused(films: Path, vlmkit) -> None:
    done = vlmkit("embed", films / "plain.mp4", "--max-pixels", 1000, code=2)
    assert b"too many pixels: 96 x 64" in done.stderr


@pytest.mark.parametrize("text", ["0", "-1s", "soon", "1d"])
def test_every_needs_a_time(films: Path, vlmkit, text: str) -> None:
    done = vlmkit("embed", films / "plain.mp4", f"--every={text}", code=2)
    assert b"is not a time such as 2s" in done.stderr


def test_a_playlist_leads_nowhere(films: Path, tmp_path: Path) -> None:
    """Neither files nor URLs that a film names are opened."""
    names = {
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{films / 'plain.mp4'}\n#EXT-X-ENDLIST\n",
        "concat.mkv": f"ffconcat version 1.0\nfile {films / 'plain.mp4'}\n",
        "session.mov": f"v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=control:{films / 'plain.mp4'}\n",
    }
    for name, text in names.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(PictureError, match="not a film that can be read"):
            list(VideoReader().members(open_file(str(tmp_path / name))))


# Reads each film named, in three ways, and says what became of it.
READ_ALL = """
import sys
from vlmkit.io.parts import Choice
from vlmkit.io.sources import PictureError, open_file
from vlmkit.io.video.reader import VideoReader
for name in sys.argv[1:]:
    for choice in (Choice(), Choice(every=0.1), Choice(every=0.001, frames=4)):
        print(name, end=" ", flush=True)
        count, error = 0, None
        try:
            for _, frame in VideoReader().chosen(open_file(name), choice):
                frame.image(64)
                count += 1
        except PictureError as found:
            error = found
        print(count, error, flush=True)
"""


def test_hostile_films_neither_crash_nor_hang(tmp_path: Path) -> None:
    """In a process with limits of time and memory: each gives frames, or one line says what is wrong."""
    from hostile_films import hostile_films

    films = [film.name for film in hostile_films(tmp_path)]
    assert len(films) >= 10
    command = ["prlimit", f"--as={6 << 30}", "--cpu=60", sys.executable, "-c", READ_ALL, *films]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, text=True)
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, ""), (done.stdout[-300:], done.stderr[-300:])
    assert [name for name, *_ in lines] == [name for name in films for _ in range(3)]
    for name, count, error in lines:
        assert 0 <= int(count) <= 30, name
        assert int(count) or error != "None", name
    told = {name: error for name, _, error in lines}
    assert "too many pixels: 8,208 x 8,192" in told["vast.avi"]
    assert any("times go back" in error for name, _, error in lines if name == "jumps.m2ts")
