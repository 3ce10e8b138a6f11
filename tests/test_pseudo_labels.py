"""The teacher of mini, on pictures of one colour each."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmkit.recipes.mini.pseudo_labels import pseudo_label

pytestmark = pytest.mark.recipes

COLORS = {"red": (200, 30, 30), "green": (40, 180, 60), "blue": (30, 60, 210)}
QUESTIONS = "what color is the wall", "what is the color of the floor", "which color has the door"


@pytest.fixture
def asked(tmp_path: Path) -> list[dict]:
    """Two of three questions about each of 12 pictures."""
    rows = []
    for number in range(12):
        name, color = list(COLORS.items())[number % 3]
        noise = np.random.default_rng(number).integers(-25, 25, (64, 80, 3))
        path = tmp_path / f"{number}.png"
        Image.fromarray((np.array(color) + noise).astype(np.uint8)).save(path)
        questions = [question for n, question in enumerate(QUESTIONS) if n != number // 3 % 3]
        rows += [{"id": f"{number}-{q}", "image": str(path), "question": q, "answers": [name]} for q in questions]
    return rows


def test_it_answers_what_nobody_asked(asked: list[dict], tmp_path: Path) -> None:
    """Pictures that the answering teacher never saw, and crops of them: it has to see them."""
    crops = tmp_path / "crops"
    rows = list(pseudo_label(asked, crops, seed=0, each=40, crops=2))
    whole = {row["image"] for row in asked}
    assert {row["image"] for row in rows} == whole | {str(path) for path in crops.iterdir()}
    assert len(list(crops.iterdir())) == 2 * len(whole)
    pairs = [(row["image"], row["question"].removesuffix("?")) for row in rows]
    assert len(set(pairs)) == len(pairs) and not set(pairs) & {(row["image"], row["question"]) for row in asked}
    right = {Path(row["image"]).stem: row["answers"] for row in asked}
    assert np.mean([row["answers"] == right[Path(row["image"]).stem.split("-")[0]] for row in rows]) > 0.9
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["question"].endswith("?") for row in rows} == {True, False}
    before = {path.name: path.read_bytes() for path in crops.iterdir()}
    assert rows == list(pseudo_label(asked, crops, seed=0, each=40, crops=2))
    assert before == {path.name: path.read_bytes() for path in crops.iterdir()}


def test_it_puts_other_things_into_questions(asked: list[dict], tmp_path: Path) -> None:
    """Things that are asked about and are answers, such as a door."""
    doors = [row | {"question": "what is beside the door", "answers": ["wall"]} for row in asked[::2]]
    walls = [row | {"question": "what is beside the wall", "answers": ["door"]} for row in asked[1::2]]
    rows = pseudo_label([*asked, *doors, *walls], tmp_path, seed=0, each=40, crops=0)
    new = {row["question"].removesuffix("?") for row in rows}
    assert "what color is the door" in new
    assert all("wall" in question or "floor" in question or "door" in question for question in new)
