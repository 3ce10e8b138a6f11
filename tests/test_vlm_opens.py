"""What training makes opens in transformers 5 and in 4.57, all of its weights in their places, with the same logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vlm_data import line, write_data, write_towers
from warm import Start

pytestmark = pytest.mark.slow

OLD = ["transformers==4.57.3", "huggingface_hub==0.36.2", "tokenizers==0.22.1"]
OLD += ["requests", "urllib3", "charset_normalizer", "idna", "certifi"]
LOOK = """
import json, sys, numpy as np, torch, transformers
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

opened = []
for folder, out in zip(sys.argv[2::2], sys.argv[3::2]):
    model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "which color is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=Image.open(sys.argv[1]), text=text, return_tensors="pt")
    with torch.no_grad():
        np.save(out, model(**inputs).logits[0].numpy())
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
    keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
    opened.append({"keys": sorted(str(key) for name in keys for key in report[name]), "said": said})
print(json.dumps({"version": transformers.__version__, "opened": opened}))
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers 4.57 with what it needs of its time, to stand before the packages of the running environment."""
    folder = tmp_path_factory.mktemp("old")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", folder, *OLD]
    done = subprocess.run(pip, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, start: Start) -> list[Path]:
    """All stages, both kinds of tower, both kinds of language model."""
    data = write_towers(write_data(tmp_path_factory.mktemp("data")))
    siglip = "--vision", data / "siglip", "--llm", data / "qwen2"
    start(data, *line(data, "align", "captions", "one")).done()
    start(data, *line(data, "instruct", "questions", "two", "--from", "one", "--lora", "2", towers=False)).done()
    start(data, *line(data, "prefer", "preferences", "three", "--from", "two", towers=False)).done()
    start(data, *line(data, "instruct", "mixed", "four", *siglip, towers=False)).done()
    return [data / name for name in ("one", "two", "three", "four")]


def look(folders: list[Path], out: Path, before: Path | None) -> dict:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(before or "")}
    pairs = [str(path) for folder in folders for path in (folder, out / f"{folder.name}.npy")]
    words = [sys.executable, "-c", LOOK, folders[0].parent / "pictures/0.png", *pairs]
    done = subprocess.run(words, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert b"newly initialized" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_both_versions_read_the_same_model(old: Path, folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "5").mkdir(), (tmp_path / "4").mkdir()
    new, before = look(folders, tmp_path / "5", None), look(folders, tmp_path / "4", old)
    assert new["version"].startswith("5.") and before["version"] == "4.57.3"
    assert [opened["keys"] for opened in new["opened"] + before["opened"]] == [[]] * 8
    assert new["opened"] == before["opened"]
    for folder in folders:
        logits = [np.load(tmp_path / version / f"{folder.name}.npy") for version in "45"]
        assert logits[0].std() > 0.1 and np.allclose(*logits, atol=1e-5)
