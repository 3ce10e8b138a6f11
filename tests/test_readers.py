"""A container that another package reads: the pictures in it are embedded, found again and pruned by their paths."""

import os
from pathlib import Path

import pytest
from helpers import jpeg, jsonl, picture, records

pytestmark = pytest.mark.slow

PLUGIN = '''
from vlmkit.io.sources import MissingMember, PictureError, Source


class Frames:
    """Pictures one behind the other, four bytes of length before each; members are called t=0, t=1, ..."""

    separator = "#"
    holds_files = False

    def members(self, file):
        at, number = file.offset, 0
        with open(file.path, "rb") as stream:
            while at < file.offset + file.size:
                stream.seek(at)
                size = int.from_bytes(stream.read(4), "big")
                if at + 4 + size > file.offset + file.size:
                    raise PictureError("the frames end too early")
                yield f"t={number}", Source(file.path, at + 4, size, file.mtime)
                at, number = at + 4 + size, number + 1

    def open(self, file, member):
        for name, source in self.members(file):
            if name == member:
                return source
        raise MissingMember
'''


def frames(path: Path, *pictures: bytes) -> Path:
    path.write_bytes(b"".join(len(data).to_bytes(4, "big") + data for data in pictures))
    return path


@pytest.fixture
def plugin(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A folder with an installed package, as pip leaves it."""
    folder = tmp_path / "site"
    (folder / "frames_reader-1.0.dist-info").mkdir(parents=True)
    (folder / "frames_reader.py").write_text(PLUGIN)
    (folder / "frames_reader-1.0.dist-info/METADATA").write_text("Name: frames-reader\nVersion: 1.0\n")
    entry = "[vlmkit.readers]\nframes = frames_reader:Frames\n"
    (folder / "frames_reader-1.0.dist-info/entry_points.txt").write_text(entry)
    before = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
    return folder


def test_members_of_a_plugins_container_are_pictures(vlmkit, plugin: Path, tmp_path: Path) -> None:
    clip = frames(tmp_path / "clip.FRAMES", jpeg("green"), jpeg("blue"), jpeg("white"))
    found = records(vlmkit("embed", "clip.FRAMES").stdout)
    assert [row["image"] for row in found] == [f"{clip}#t={number}" for number in range(3)]
    assert {row["mtime"] for row in found} == {clip.stat().st_mtime}
    again = records(vlmkit("embed", stdin=jsonl(*({"image": row["image"]} for row in found))).stdout)
    assert [row["embedding"] for row in again] == [row["embedding"] for row in found]
    (one,) = records(vlmkit("embed", f"{clip}#t=1").stdout)
    assert one["embedding"] == found[1]["embedding"]
    assert b"no such file" in vlmkit("embed", f"{clip}#t=7", code=2).stderr
    vlmkit("index", "-i", "./i", stdin=jsonl(*found))
    frames(clip, jpeg("green"), jpeg("blue"))
    vlmkit("index", "-i", "./i", "--prune", tmp_path)
    assert [row["id"] for row in records(vlmkit("index", "-i", "./i", "--dump").stdout)] == [
        f"{clip}#t=0",
        f"{clip}#t=1",
    ]


def test_a_damaged_one_fails_alone_in_a_folder(vlmkit, plugin: Path, tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    path = frames(tmp_path / "in/b.frames", jpeg("green"), jpeg("blue"))
    path.write_bytes(path.read_bytes()[:-9])
    done = vlmkit("embed", "in", code=3)
    assert [row["id"] for row in records(done.stdout)] == [f"{tmp_path}/in/a.png", f"{path}#t=0"]
    assert b"the frames end too early" in done.stderr


def test_without_the_package_it_is_a_file_like_any_other(vlmkit, tmp_path: Path) -> None:
    frames(tmp_path / "clip.frames", jpeg("green"))
    assert b"not a picture that can be read" in vlmkit("embed", "clip.frames", code=2).stderr


def test_a_plugin_that_cannot_be_loaded_is_one_line(vlmkit, plugin: Path, tmp_path: Path) -> None:
    (plugin / "frames_reader.py").write_text("import nothing_of_that_name\n")
    frames(tmp_path / "clip.frames", jpeg("green"))
    done = vlmkit("embed", "clip.frames", code=2)
    assert b"the plugin frames of vlmkit.readers cannot be loaded" in done.stderr
    assert len(done.stderr.splitlines()) == 1
