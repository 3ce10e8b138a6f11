"""A trained folder after training: what the language model could do before, and `vlmkit train check`."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import records, shapes
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from vlm_data import line, write_data, write_towers
from warm import Start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Path:
    folder = write_towers(write_data(tmp_path_factory.mktemp("data")))
    start(folder, *line(folder, "align", "captions", "aligned")).done()
    return folder


@pytest.mark.parametrize("text", ["a cat is", "a", "what? "])
def test_a_text_is_continued_as_the_language_model_does(data: Path, start: Start, tmp_path: Path, text: str) -> None:
    """After align, which leaves it alone: with the same tokens, bit for bit."""
    words = "ask", text, "--raw", "-m", str(data / "aligned"), "--max-tokens", "12", "--json"
    (record,) = records(start(tmp_path, *words).done().stdout)
    bare, tokenizer = (
        AutoModelForCausalLM.from_pretrained(data / "llama"),
        AutoTokenizer.from_pretrained(data / "llama"),
    )
    inputs = tokenizer(text, return_tensors="pt")
    (row,) = bare.generate(**inputs, max_new_tokens=12, do_sample=False).tolist()
    before, after = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (inputs.input_ids[0], row))
    assert record["answer"] == after.removeprefix(before) and record["answer"]


def test_a_text_is_continued_without_pictures(data: Path, start: Start, tmp_path: Path) -> None:
    picture = next((data / "pictures").iterdir())
    done = start(tmp_path, "ask", str(picture), "a cat is", "--raw", "-m", str(data / "aligned")).done(2)
    assert b"a text is continued without pictures" in done.stderr
    done = start(tmp_path, "ask", "a cat is", "--raw").done(2)
    assert b"continues no text as it stands" in done.stderr


def found(start: Start, place: Path, folder: Path, code: int = 0) -> dict[str, bool]:
    done = start(place, "train", "check", str(folder)).done(code)
    assert (b"vlmkit: " in done.stderr) == (code > 0)
    return {record["check"]: record["ok"] for record in records(done.stdout)}


def test_a_trained_folder_is_checked(data: Path, start: Start, tmp_path: Path) -> None:
    whole = ["files", "weights", "opens", "image tokens", "sees", "generates", "card"]
    assert found(start, tmp_path, data / "aligned") == dict.fromkeys(whole, True)
    damaged = tmp_path / "damaged"
    shutil.copytree(data / "aligned", damaged)
    weights = load_file(damaged / "model.safetensors")
    name = next(name for name in weights if "projector" in name and "linear_2.weight" in name)
    save_file(weights | {name: torch.zeros_like(weights[name])}, damaged / "model.safetensors")
    card = damaged / "README.md"
    card.write_text(card.read_text().replace("| image tokens | 16 |", "| image tokens | 17 |"))
    states = found(start, tmp_path, damaged, 2)
    assert [check for check, ok in states.items() if not ok] == ["sees", "card"]
    save_file({key: value for key, value in weights.items() if key != name}, damaged / "model.safetensors")
    assert found(start, tmp_path, damaged, 2) == {"files": True, "weights": True, "opens": False}
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, damaged / "model.safetensors")
    assert not found(start, tmp_path, damaged, 2)["weights"]
    card.unlink()
    assert found(start, tmp_path, damaged, 2) == {"files": False}


def test_an_unfinished_run_and_other_words(data: Path, start: Start, tmp_path: Path) -> None:
    (tmp_path / "killed/checkpoints/checkpoint-2").mkdir(parents=True)
    done = start(tmp_path, "train", "check", "killed").done(2)
    assert b"the run is not finished: give its command again, with --resume" in done.stderr
    assert b"is not a folder" in start(tmp_path, "train", "check", "none").done(2).stderr
    for words in ([], ["a", "b"], ["a", "--lr", "1"]):
        assert b"check takes one trained folder" in start(tmp_path, "train", "check", *words).done(2).stderr


def test_a_dual_encoder_is_checked(start: Start, tmp_path: Path) -> None:
    shapes(tmp_path)
    words = "train", "contrastive", "shapes.tar", "--preset", "debug", "--steps", "2", "-o", "clip", "-q"
    start(tmp_path, *words).done()
    assert found(start, tmp_path, tmp_path / "clip") == dict.fromkeys(
        ["files", "weights", "opens", "sees", "card"], True
    )
