"""--duplicates: copies by content, groups held against a brute force written out."""

import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jsonl, picture, records
from hypothesis import given
from hypothesis import strategies as st

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
    from PIL import Image

    with Image.open(photos / "chelsea.png") as cat:
        cat.resize((400, 266)).save(folder / "a small cat.jpg")
    vlmkit("index", stdin=vlmkit("embed", folder).stdout)
    copies, cats = records(vlmkit("search", "--duplicates").stdout)
    assert copies == {"ids": copies["images"], "images": [f"{folder}/b\ncopy.png", f"{folder}/coffee.png"], "score": 1}
    assert cats["images"] == [f"{folder}/chelsea.png", f"{folder}/a small cat.jpg"]  # the larger one first
    assert 0.95 <= cats["score"] < 1
    assert vlmkit("search", "--duplicates", "-0").stdout.count(b"\0") == 4
    assert len(records(vlmkit("search", "--duplicates", "-k", 1).stdout)) == 1
    only = vlmkit("search", "--duplicates", "--where", "image~*c*.png", "-l").stdout
    assert only == os_lines(copies["images"])
    (folder / "coffee.png").unlink()
    again = records(vlmkit("search", "--duplicates").stdout)
    assert [group["images"] for group in again] == [copies["images"], cats["images"]]  # now by their vectors


def os_lines(names: list[str]) -> bytes:
    return "".join(name + "\n" for name in names).encode()


def test_equal_bytes_are_copies_whatever_the_vectors_say(vlmkit, tmp_path: Path) -> None:
    """Such as files that were changed after they had been indexed."""
    names = [str(picture(tmp_path / f"{i}.png")) for i in range(3)]
    picture(tmp_path / "2.png", "blue")
    rows = [embedded(name, vector) for name, vector in zip(names, ([1, 0], [0, 1], [-1, 0]), strict=True)]
    vlmkit("index", stdin=jsonl(*rows))
    (group,) = records(vlmkit("search", "--duplicates").stdout)
    assert group == {"ids": names[:2], "images": names[:2], "score": 1}


def test_two_records_of_one_picture_are_no_duplicates(vlmkit) -> None:
    rows = [embedded(f"q{i}", [1, 0]) | {"image": "/one.png"} for i in range(3)]
    vlmkit("index", stdin=jsonl(*rows))
    assert vlmkit("search", "--duplicates", code=1).stdout == b""
    vlmkit("index", stdin=jsonl(embedded("/two.png", [1, 0])))
    (group,) = records(vlmkit("search", "--duplicates").stdout)
    assert group == {"ids": ["/two.png", "q0", "q1", "q2"], "images": ["/two.png", "/one.png"], "score": 1}


def test_texts_have_duplicates_too(vlmkit) -> None:
    vlmkit("index", stdin=jsonl(*({**embedded(name, [1, 0]), "image": None, "text": name} for name in "ab")))
    (group,) = records(vlmkit("search", "--duplicates").stdout)
    assert group == {"ids": ["a", "b"], "images": [], "score": 1}
    assert vlmkit("search", "--duplicates", "-l").stdout == b"a\nb\n"
