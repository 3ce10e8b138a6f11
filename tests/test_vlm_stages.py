"""align, instruct and prefer as a user runs them: what they train, what they leave alone, what they refuse."""

from pathlib import Path

import pytest
import torch
from helpers import records
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from vlm_data import line, write_data, write_towers
from warm import Start

from vlmkit.models.llava.model import build
from vlmkit.models.registry import CONNECTORS

pytestmark = pytest.mark.slow

Weights = dict[str, torch.Tensor]
LAYERS = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_towers(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def aligned(data: Path, start: Start) -> Path:
    start(data, *line(data, "align", "captions", "aligned")).done()
    return data / "aligned"


def weights(folder: Path) -> Weights:
    """All weights, the towers' names as they were before they became parts."""
    return load_file(folder / "model.safetensors")


def changed(before: Weights, after: Weights) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def answer(folder: Path, picture: Path, prompt: str = "which color is it?") -> str:
    """A greedy reply, as transformers documents it; importing vlmkit's models has registered what is not native."""
    processor = AutoProcessor.from_pretrained(folder)
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=Image.open(picture), text=text, return_tensors="pt")
    return processor.decode(model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :])


def test_the_installed_command_goes_through_all_stages(data: Path, vlmkit, tmp_path: Path) -> None:
    """From nothing, each stage from the one before it."""
    log = records(vlmkit("train", "align", data / "captions.jsonl", "-o", "one", "--preset", "debug").stdout)
    assert [entry["step"] for entry in log] == list(range(1, 21))
    assert [entry["epoch"] for entry in log] == [1 + step // 3 for step in range(20)], "24 pictures, 8 a step"
    assert {"step", "loss", "lr", "tokens_per_s", "samples_per_s", "memory_gb"} <= log[0].keys()
    assert log[-1]["loss"] < log[0]["loss"]
    two = vlmkit("train", "instruct", data / "mixed.jsonl", "-o", "two", "--preset", "debug", "--from", "one")
    summary = "26 rows read, 26 kept (26 samples), 0 dropped"
    assert two.stderr.decode() == f"vlmkit: {data / 'mixed.jsonl'}: {summary}\n"
    log = records(
        vlmkit(
            "train", "prefer", data / "preferences.jsonl", "-o", "three", "--preset", "debug", "--from", "two"
        ).stdout
    )
    assert {"loss", "rewards/accuracies", "rewards/margins"} <= log[0].keys()
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "before the first step it is its own reference"
    assert log[-1]["rewards/margins"] > 0.1 and log[-1]["loss"] < 0.6
    for name in ("one", "two", "three"):
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert {"model.safetensors", "config.json", "generation_config.json", "README.md", "loss.png"} <= files
        assert {"tokenizer.json", "processor_config.json", "chat_template.jinja", "train.toml"} <= files
        assert isinstance(answer(tmp_path / name, data / "pictures/0.png"), str)
        card = (tmp_path / name / "README.md").read_text()
        assert "license" not in card and str(data) in card and "training loss" in card


def test_align_trains_the_projector_and_nothing_else(data: Path, aligned: Path) -> None:
    """Against the weights that the towers came with, and the projector that the seed gives."""
    after = weights(aligned)
    head = "model.vision_tower.vision_model."
    for name, value in load_file(data / "clip/model.safetensors").items():
        assert torch.equal(after[head + name.removeprefix("vision_model.")], value), name
    for name, value in load_file(data / "llama/model.safetensors").items():
        place = name if name.startswith("lm_head") else f"model.language_model.{name.removeprefix('model.')}"
        own = after[f"language_model.{name}"] if f"language_model.{name}" in after else after[place]
        assert torch.equal(own[: len(value)], value), name
    torch.manual_seed(0)
    fresh = build(str(data / "clip"), str(data / "llama"), "mlp").model.state_dict()
    moved = {name for name, value in fresh.items() if "projector" in name and not torch.equal(_at(after, name), value)}
    assert {name.split("projector.")[1] for name in moved} == {
        f"linear_{i}.{k}" for i in (1, 2) for k in ("weight", "bias")
    }


def _at(saved: Weights, name: str) -> torch.Tensor:
    return saved[name] if name in saved else saved[name.removeprefix("model.")]


def test_instruct_trains_projector_and_language_model(data: Path, aligned: Path, start: Start, tmp_path: Path) -> None:
    flags = "--from", aligned
    start(tmp_path, *line(data, "instruct", "mixed", "full", *flags, towers=False)).done()
    start(tmp_path, *line(data, "instruct", "mixed", "lora", *flags, "--lora", "4", towers=False)).done()
    before = weights(aligned)
    language = {name for name in before if "vision_tower" not in name}
    assert changed(before, weights(tmp_path / "full")) == language
    expected = {name for name in language if "projector" in name or name.split(".")[-2] in LAYERS}
    assert len(expected) == 4 + 2 * 7
    assert changed(before, weights(tmp_path / "lora")) == expected


@pytest.mark.parametrize("lora", [[], ["--lora", "4"]], ids=["full", "lora"])
def test_prefer_trains_the_same(data: Path, aligned: Path, start: Start, tmp_path: Path, lora: list[str]) -> None:
    flags = "--from", aligned, "--val", "0.3", *lora
    log = records(start(tmp_path, *line(data, "prefer", "preferences", "out", *flags, towers=False)).done().stdout)
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-4) and any("val_rewards/accuracies" in entry for entry in log)
    before = weights(aligned)
    language = {name for name in before if "vision_tower" not in name}
    expected = {name for name in language if "projector" in name or name.split(".")[-2] in LAYERS} if lora else language
    assert changed(before, weights(tmp_path / "out")) == expected


@pytest.mark.parametrize(
    ("stage", "name", "flags"),
    [("instruct", "mixed", []), ("prefer", "preferences", []), ("prefer", "preferences", ["--lora", "4"])],
)
def test_what_the_tower_says_may_be_kept(
    data: Path, aligned: Path, start: Start, tmp_path: Path, stage: str, name: str, flags: list[str]
) -> None:
    """In a file of float16, which is all that may tell it from looking again."""
    (tmp_path / "kept.toml").write_text("cache-features = true\n")
    words = line(data, stage, name, "out", "--from", aligned, *flags, towers=False)
    plain = start(tmp_path / "plain", *words)
    kept = start(tmp_path / "kept", *words, "--config", tmp_path / "kept.toml")
    losses = [[row["loss"] for row in records(run.done().stdout) if "loss" in row] for run in (plain, kept)]
    assert len(losses[0]) > 2 and losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[1] != losses[0], "it was kept"


@pytest.mark.parametrize(("tower", "llm"), [("clip", "llama"), ("siglip", "qwen2")])
def test_alignment_leaves_what_the_language_model_says(
    data: Path, start: Start, tmp_path: Path, tower: str, llm: str
) -> None:
    towers = "--vision", data / tower, "--llm", data / llm
    start(tmp_path, *line(data, "align", "captions", "out", *towers, towers=False)).done()
    bare, words = AutoModelForCausalLM.from_pretrained(data / llm), AutoTokenizer.from_pretrained(data / llm)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    for prompt in ("A cat is", "Two dogs"):
        ids, same = words(prompt, return_tensors="pt"), processor(text=prompt, return_tensors="pt")
        assert ids["input_ids"].tolist() == same["input_ids"].tolist()
        says = words.decode(bare.generate(**ids, max_new_tokens=24, do_sample=False)[0])
        assert len(set(says)) > 3 and says == processor.decode(model.generate(**same, max_new_tokens=24)[0])
        rows = min(bare.config.vocab_size, model.config.text_config.vocab_size)
        assert torch.equal(bare(**ids).logits[..., :rows], model(**same).logits[..., :rows])


@pytest.mark.parametrize(
    ("flags", "native"),
    [(["--connector", name], False) for name in CONNECTORS if name != "mlp"]
    + [(["--vision", "patches"], False), (["--vision", "mini"], False), (["--connector", "mlp"], True)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_connector_and_tower_trains_and_opens(
    data: Path, start: Start, tmp_path: Path, flags: list[str], native: bool
) -> None:
    both = ["--llm", data / "qwen2", *([] if "--vision" in flags else ["--vision", data / "clip"])]
    start(tmp_path, *line(data, "align", "captions", "one", *both, *flags, towers=False)).done()
    two = line(data, "instruct", "questions", "two", "--from", "one", towers=False)
    start(tmp_path, *two, "--batch-size", "4").done()
    assert isinstance(answer(tmp_path / "two", data / "pictures/3.png"), str)
    assert any("projector" in name for name in changed(weights(tmp_path / "one"), weights(tmp_path / "two")))
    assert ("Not native" in (tmp_path / "two/README.md").read_text()) is not native
    if "adaptive" in flags or "cross-attention" in flags:  # what is asked makes a difference to what is seen
        three = line(data, "prefer", "preferences", "three", "--from", "two", towers=False)
        start(tmp_path, *three).done()
