"""The recipe of what mini talks with, on 64 pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import jsonl, records, shapes

from vlmkit.models.mini.talk import CONFIG


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the recipe makes of 64 pictures of each source, by its command."""
    place = tmp_path_factory.mktemp("recipe")
    shard = shapes(place)
    asked = [
        {"id": f"{n}-q", "image": f"{shard}/{n:03}.png", "question": "what is it?", "answers": ["a shape"]}
        for n in range(64)
    ]
    (place / "daquar.jsonl").write_bytes(jsonl(*asked))
    command = [sys.executable, "-m", "vlmkit.models.mini.talk_recipe", shard, "--val", shard]
    command += ["--daquar", place / "daquar.jsonl", "--limit", "64", "--epochs", "2", "-o", place / "made"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (place / "made/log").write_text(done.stderr)
    return place / "made"


def test_the_recipe_makes_a_model_that_answers(made: Path, vlmkit, tmp_path: Path) -> None:
    log = [json.loads(line) for line in (made / "log").read_text().splitlines() if line.startswith("{")]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 1, "it has learned"
    settings = json.loads((made / CONFIG).read_text())
    figures = settings["figures"]
    assert figures == log[-1] and figures["captions"] == 64 and figures["easy_vqa_questions"] > 64
    assert [phase["epochs"] for phase in settings["recipe"]["phases"]] == [2, 2]
    card = (made / "TALK_CARD.md").read_text()
    assert f"{figures['easy_vqa_exact']:.1%}" in card and "2 times through" in card
    shapes(tmp_path)
    done = vlmkit("ask", tmp_path / "shapes.tar", "what is it?", "-m", made, "--max-tokens", "4")
    assert len(records(done.stdout)) == 64
