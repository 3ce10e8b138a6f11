"""The recipe of what mini talks with, on 24 pictures, and the weights that it made for the package."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers import SOURCE_TREE, jsonl, records, shapes

from vlmkit.io.inputs import records_of
from vlmkit.metrics import vqa_normalize
from vlmkit.models.chat.mini import CONFIG, GRAPH, TOKENIZER
from vlmkit.models.resolve import MINI_FILES, MINI_FOLDER

pytestmark = pytest.mark.recipes

QUESTIONS = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the recipe makes of 24 pictures of each source, by its command; of rooms, 9 and one held out."""
    place = tmp_path_factory.mktemp("recipe")
    shard = shapes(place)
    words = "what is it?", "what is in the middle", "how many are there"
    asked = [
        {"id": f"{n}-{k}", "image": f"{shard}/{n:03}.png", "question": question, "answers": [f"shape {(n + k) % 4}"]}
        for n in (*range(9), 22)
        for k, question in enumerate(words[: 1 + n % 3])
    ]
    (place / "daquar.jsonl").write_bytes(jsonl(*asked))
    command = [sys.executable, "-m", "vlmkit.recipes.mini.train_chat", shard, "--val", shard]
    command += ["--daquar", place / "daquar.jsonl", "--limit", "24", "--epochs", "3", "--students", "1"]
    command += ["-o", place / "made"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=SOURCE_TREE)
    assert done.returncode == 0, done.stderr
    (place / "made/log").write_text(done.stderr)
    return place / "made"


def test_the_recipe_makes_a_model_that_answers(made: Path, vlmkit, tmp_path: Path) -> None:
    log = [json.loads(line) for line in (made / "log").read_text().splitlines() if line.startswith("{")]
    first = next(entry["loss"] for entry in log if "loss" in entry)
    assert min(entry["val_loss"] for entry in log if "val_loss" in entry) < first - 1, "it has learned"
    settings = json.loads((made / CONFIG).read_text())
    figures = settings["figures"]
    assert (
        figures == log[-1]
        and figures["captions"] == 24
        and figures["easy_vqa_questions"] > 24
        and figures["daquar_questions"] > 0
    )
    assert [phase["epochs"] for phase in settings["recipe"]["phases"]] == [3, 3]
    assert len(settings["recipe"]["teaching"]) == 1
    card = (made / "TALK_CARD.md").read_text()
    assert f"{figures['easy_vqa_exact']:.1%}" in card and "3 times through" in card
    shapes(tmp_path)
    done = vlmkit("ask", tmp_path / "shapes.tar", "what is it?", "-m", made, "--max-tokens", "4")
    assert len(records(done.stdout)) == 64


def test_it_takes_at_most_18_megabytes() -> None:
    assert sum((MINI_FOLDER / name).stat().st_size for name in (GRAPH, TOKENIZER, CONFIG)) <= 18_000_000
    assert sum(path.stat().st_size for path in MINI_FOLDER.iterdir() if path.is_file()) <= 40_000_000
    settings = json.loads((MINI_FOLDER / CONFIG).read_text())
    assert f"{settings['figures']['cider']:.3f}" in (MINI_FOLDER / "TALK_CARD.md").read_text()
    assert set(MINI_FILES["chat"]) <= {path.name for path in MINI_FOLDER.iterdir()}


def test_it_sees_what_it_is_asked_about(vlmkit) -> None:
    """easy-VQA's test questions: right, and a fifth less with the pictures of other questions."""
    from vlmkit.datasets.easy_vqa import easy_vqa

    rows = list(islice(easy_vqa("test"), QUESTIONS))
    images = [row["image"] for row in rows]
    turned = [row | {"image": image} for row, image in zip(rows, np.roll(images, QUESTIONS // 2).tolist(), strict=True)]

    def right(asked: list[dict]) -> float:
        answered = records(vlmkit("ask", stdin=jsonl(*asked)).stdout)
        return float(np.mean([vqa_normalize(row["answer"]) == vqa_normalize(row["answers"][0]) for row in answered]))

    assert right(rows) >= 0.94
    assert right(turned) <= 0.75


def test_captions_of_real_photographs(shared: Path, vlmkit) -> None:
    """Guards against getting worse: on 200 pictures of Flickr8k dev, with a margin for so few of them."""
    from vlmkit.metrics import cider

    pictures = list(islice(records_of([str(shared / "data/flickr8k/dev-000.tar")]), 200))
    rows = records(vlmkit("caption", stdin=jsonl(*pictures)).stdout)
    found = cider([row["caption"] for row in rows], [row["captions"] for row in rows], tokenize="py")
    assert found["corpus"] >= 0.45
