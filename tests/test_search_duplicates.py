"""--duplicates: copies by content, groups held against a brute force written out."""

import os
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jpeg, jsonl, picture, records, tar
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from vlmkit.search import duplicates, neighbours
from vlmkit.search.duplicates import Vectors, linked


def brute_force(vectors: np.ndarray, threshold: float) -> list[list[int]]:
    """Join the nearest pair whose groups lie wholly within the threshold, until there is none."""
    cosines = vectors @ vectors.T
    groups = [[i] for i in range(len(vectors))]
    pairs = [(-float(cosines[a, b]), a, b) for a, b in combinations(range(len(vectors)), 2)]
    for negative, a, b in sorted(pairs):
        ours, theirs = (next(g for g in groups if i in g) for i in (a, b))
        if -negative >= threshold and ours is not theirs and cosines[np.ix_(ours, theirs)].min() >= threshold:
            groups.remove(theirs)
            ours += theirs
    return sorted(sorted(group) for group in groups)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0.3, 0.8, 0.95]), st.sampled_from([7, 10**7]))
def test_groups_are_those_of_brute_force(seed: int, count: int, threshold: float, most: int) -> None:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((5, 4))
    vectors = centres[random.integers(0, 5, count)] + 0.3 * random.standard_normal((count, 4))
    stored = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    rows = Vectors(stored, np.arange(count))
    groups = sorted(linked(rows, threshold, (8, 16), most))
    assert sorted(i for group in groups for i in group) == list(range(count))
    assert all(rows.lowest(group, group) >= threshold - 1e-5 for group in groups)
    if most > count**2:
        assert groups == brute_force(rows[:], threshold)


def spread(count: int, noise: float) -> np.ndarray:
    """Unit vectors around 20 centres, each third a near copy of the one before."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((20, 8))[random.integers(0, 20, count)] + noise * random.standard_normal((count, 8))
    rows[3::3] = rows[2:-1:3] + 0.1 * random.standard_normal(rows[3::3].shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def keys(pairs: list[np.ndarray]) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for some in pairs for _, a, b in some}


def test_many_rows_are_compared_with_near_ones(monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_COMPARED", 600)
    stored, notes = spread(2000, 0.4), []
    cells = neighbours.blocking(Vectors(stored, np.arange(2000)), 0.1**0.5)
    assert cells is not None and cells.is_complete
    near = Vectors(stored, np.arange(2000), False, notes.append)
    exact = Vectors(stored, np.arange(2000), True)
    assert keys(list(near.pairs(0.95, (64, 512)))) == keys(list(exact.pairs(0.95, (64, 512))))
    assert list(linked(near, 0.95)) == list(linked(exact, 0.95))
    assert notes == []


def test_the_recall_is_told_where_rows_are_too_spread(monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_COMPARED", 100)
    monkeypatch.setattr(duplicates, "DRAWN", 2000)
    stored, notes = spread(2000, 1.0), []
    found = keys(list(Vectors(stored, np.arange(2000), False, notes.append).pairs(0.8, (64, 512))))
    there = keys(list(Vectors(stored, np.arange(2000), True).pairs(0.8, (64, 512))))
    assert found < there
    assert f"found {len(found):,} of the {len(there):,} pairs" in notes[0] and "--exact" in notes[0]


def test_a_chain_is_not_one_group(vlmkit) -> None:
    angles = np.radians([0, 11, 23, 34])
    vlmkit("index", stdin=jsonl(*(embedded(f"{i}.png", [np.cos(a), np.sin(a)]) for i, a in enumerate(angles))))
    found = records(vlmkit("search", "--duplicates").stdout)
    assert sorted(group["ids"] for group in found) == [["0.png", "1.png"], ["2.png", "3.png"]]
    assert all(group["score"] == pytest.approx(np.cos(np.radians(11)), abs=1e-3) for group in found)
    (group,) = records(vlmkit("search", "--duplicates", "--threshold", 0.8).stdout)
    assert group["ids"] == ["0.png", "1.png", "2.png", "3.png"]
    assert group["score"] == pytest.approx(np.cos(np.radians(34)), abs=1e-3)
    assert vlmkit("search", "--duplicates", "--threshold", 1, code=1).stdout == b""


def test_copies_near_copies_and_missing_files(vlmkit, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    for name in ("coffee.png", "chelsea.png", "rocket.jpg"):
        shutil.copy(photos / name, folder)
    shutil.copy(photos / "coffee.png", folder / "b\ncopy.png")
    with Image.open(photos / "chelsea.png") as cat:
        cat.resize((400, 266)).save(folder / "a small cat.jpg")
    vlmkit("index", stdin=vlmkit("embed", folder).stdout)
    copies, cats = records(vlmkit("search", "--duplicates").stdout)
    assert bare(copies) == (copies["images"], [f"{folder}/coffee.png", f"{folder}/b\ncopy.png"], 1)
    assert (copies["kept"], copies["why"]) == (f"{folder}/coffee.png", "not named as a copy")
    assert cats["images"] == [f"{folder}/chelsea.png", f"{folder}/a small cat.jpg"]  # the larger one first
    assert 0.95 <= cats["score"] < 1 and cats["why"] == "most pixels"
    assert cats["files"][0] == {"image": f"{folder}/chelsea.png"} | {
        name: cats["files"][0][name] for name in ("bytes", "width", "height", "mtime")
    }
    assert vlmkit("search", "--duplicates", "-0").stdout.count(b"\0") == 4
    assert len(records(vlmkit("search", "--duplicates", "-k", 1).stdout)) == 1
    only = vlmkit("search", "--duplicates", "--where", "image~*c*.png", "-l").stdout
    assert only == os_lines(copies["images"])
    (folder / "coffee.png").unlink()
    again = records(vlmkit("search", "--duplicates").stdout)
    assert [group["images"] for group in again] == [copies["images"], cats["images"]]  # now by their vectors


def bare(group: dict) -> tuple[list[str], list[str], float]:
    return group["ids"], group["images"], group["score"]


def grouped(vlmkit, folder: Path, *flags: str) -> list[list[str]]:
    """The names in each group of what is in `folder`, the one to keep first."""
    vlmkit("index", "-i", f"./of-{folder.name}", stdin=vlmkit("embed", folder).stdout)
    done = vlmkit("search", "-i", f"./of-{folder.name}", "--duplicates", *flags)
    return [[Path(name).name for name in group["images"]] for group in records(done.stdout)]


def scene(seed: int, size: tuple[int, int] = (300, 200)) -> Image.Image:
    """Coloured clouds with lines in them."""
    random = np.random.default_rng(seed)
    clouds = Image.fromarray(random.integers(256, size=(5, 7, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(clouds)
    for x, y, color in random.integers(0, 190, (9, 3)).tolist():
        draw.line((x, y, 150, 100), fill=(color, 90, 255 - color), width=4)
    return clouds


def form(word: str) -> Image.Image:
    """A printed page of which one line differs."""
    page = Image.new("L", (600, 800), "white")
    draw = ImageDraw.Draw(page)
    for line in range(30):
        text = word if line == 17 else f"line {line} of this form is always the same text, whatever"
        draw.text((40, 40 + 24 * line), text, fill="black", font=ImageFont.load_default(18))
    return page


def test_copies_of_one_picture_are_one_group(vlmkit, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in "12":
        one = scene(int(seed))
        one.save(folder / f"{seed}.png")
        one.save(folder / f"{seed}-saved.jpg", quality=40)
        one.resize((75, 50)).save(folder / f"{seed}-small.webp")
        one.convert("L").save(folder / f"{seed}-grey.png")
        one.transpose(Image.Transpose.ROTATE_90).save(folder / f"{seed}-turned.png")
        one.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((150, 100)).save(folder / f"{seed}-mirrored.jpg")
        one.crop((30, 20, 300, 200)).save(folder / f"{seed}-crop.png")
        one.resize((150, 200)).save(folder / f"{seed}-squeezed.png")
    found = grouped(vlmkit, folder, "--exact")
    ends = {"", "-saved", "-small", "-grey", "-turned", "-mirrored"}
    stems = [{Path(name).stem for name in group} for group in sorted(found, key=min)]
    assert stems == [{seed + end for end in ends} for seed in "12"]


def test_different_pictures_are_in_no_group(vlmkit, tmp_path: Path) -> None:
    """Pages that differ in one line, colours of one brightness, one page at another time."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, word in enumerate(("you owe us nothing at all", "please pay at once, or else", "")):
        form(word).save(folder / f"page{number}.png")
    for name, color in (("red", (200, 60, 60)), ("green", (40, 124, 60)), ("grey", (102, 102, 102))):
        picture(folder / f"{name}.png", color, size=(64, 64))
    vlmkit("index", "-i", "./i", stdin=vlmkit("embed", folder).stdout)
    assert vlmkit("search", "-i", "./i", "--duplicates", "--where", "image~*page*", code=1).stdout == b""
    assert all({"red.png", "green.png"} - set(group) for group in grouped(vlmkit, folder))


def test_names_of_one_file_are_no_copies(vlmkit, tmp_path: Path) -> None:
    """Links, hard links, other ways to a folder; a real copy beside them stays one."""
    disk = tmp_path / "disk"
    picture(disk / "a.png")
    (disk / "link.png").symlink_to("a.png")
    os.link(disk / "a.png", disk / "hard.png")
    tar(tmp_path / "disk/s.tar", {"m.jpg": jpeg("pink")})
    (tmp_path / "other").symlink_to("disk")
    ways = ("a.png", "link.png", "hard.png", "s.tar/m.jpg")
    names = [f"{folder}/{name}" for folder in (disk, tmp_path / "other") for name in ways]
    vlmkit("index", stdin=vlmkit("embed", *names).stdout)
    assert vlmkit("search", "--duplicates", code=1).stdout == b""
    shutil.copy(disk / "a.png", disk / "z.png")
    vlmkit("index", stdin=vlmkit("embed", disk / "z.png", tmp_path / "other/z.png").stdout)
    (group,) = records(vlmkit("search", "--duplicates").stdout)
    assert bare(group) == ([f"{disk}/a.png", f"{disk}/z.png"], [f"{disk}/a.png", f"{disk}/z.png"], 1)
    assert len(group["same_file"][f"{disk}/a.png"]) == 5 and len(group["same_file"][f"{disk}/z.png"]) == 1


def test_the_one_to_keep(vlmkit, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, time in (("b/x.png", 100), ("a/x (1).png", 50), ("c/x.png", 90)):
        os.utime(picture(folder / name, size=(50, 50)), (time, time))
    assert grouped(vlmkit, folder) == [["x.png", "x.png", "x (1).png"]]
    search = ("search", "-i", "./of-in", "--duplicates")
    (group,) = records(vlmkit(*search).stdout)
    assert (group["kept"], group["why"]) == (f"{folder}/c/x.png", "oldest")
    (group,) = records(vlmkit(*search, "--prefer", "in/a").stdout)
    assert (group["kept"], group["why"]) == (f"{folder}/a/x (1).png", "preferred folder")
    vlmkit("search", "-i", "./of-in", "a cat", "--prefer", "in", code=2)


def os_lines(names: list[str]) -> bytes:
    return "".join(name + "\n" for name in names).encode()


def test_equal_bytes_are_copies_whatever_the_vectors_say(vlmkit, tmp_path: Path) -> None:
    """Such as files that were changed after they had been indexed."""
    names = [str(picture(tmp_path / f"{i}.png")) for i in range(3)]
    picture(tmp_path / "2.png", "blue")
    rows = [embedded(name, vector) for name, vector in zip(names, ([1, 0], [0, 1], [-1, 0]), strict=True)]
    vlmkit("index", stdin=jsonl(*rows))
    (group,) = records(vlmkit("search", "--duplicates").stdout)
    assert bare(group) == (names[:2], names[:2], 1)


def test_two_records_of_one_picture_are_no_duplicates(vlmkit) -> None:
    rows = [embedded(f"q{i}", [1, 0]) | {"image": "/one.png"} for i in range(3)]
    vlmkit("index", stdin=jsonl(*rows))
    assert vlmkit("search", "--duplicates", code=1).stdout == b""
    vlmkit("index", stdin=jsonl(embedded("/two.png", [1, 0])))
    (group,) = records(vlmkit("search", "--duplicates").stdout)
    assert bare(group) == (["/two.png", "q0", "q1", "q2"], ["/two.png", "/one.png"], 1)


def test_texts_have_duplicates_too(vlmkit) -> None:
    vlmkit("index", stdin=jsonl(*({**embedded(name, [1, 0]), "image": None, "text": name} for name in "ab")))
    (group,) = records(vlmkit("search", "--duplicates").stdout)
    assert group == {"ids": ["a", "b"], "images": [], "score": 1}
    assert vlmkit("search", "--duplicates", "-l").stdout == b"a\nb\n"


def test_pictures_that_are_not_there_are_told(vlmkit, tmp_path: Path) -> None:
    rows = jsonl(embedded(str(picture(tmp_path / "a.png")), [1, 0]), embedded("/gone/b.png", [1, 0]))
    vlmkit("index", "-i", "./i", stdin=rows)
    planned = vlmkit("search", "-i", "./i", "--duplicates", "--dry-run").stdout
    assert records(planned) == [{"records": 2, "pictures": 1, "missing": 1}]
    done = vlmkit("search", "-i", "./i", "--duplicates")
    assert len(records(done.stdout)) == 1
    assert done.stderr == b"vlmkit: 1 pictures cannot be opened: their vectors decide what is a copy of them\n"
    assert vlmkit("search", "-i", "./i", "--duplicates", "-q").stderr == b""
    assert b"requires --duplicates" in vlmkit("search", "-i", "./i", "a cat", "--dry-run", code=2).stderr
