"""What mini talks with, as a folder to train on from."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import jsonl, records
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.mini import GRAPH, TOKENIZER
from vlmkit.models.llava.import_mini import LAYOUT, import_mini
from vlmkit.models.llava.model import build, save
from vlmkit.models.resolve import MINI_FOLDER
from vlmkit.recipes.mini.export_chat import export_chat
from vlmkit.recipes.mini.tokenizer import language_model

pytestmark = pytest.mark.slow

MINI = MINI_FOLDER
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mini` itself."""
    folder = tmp_path_factory.mktemp("unpacked") / "mini"
    import_mini(MINI, folder)
    return folder


@pytest.mark.parametrize("kept", ["float32", "float16", "int8"])
def test_there_and_back(tmp_path: Path, kept: str) -> None:
    torch.manual_seed(0)
    vlm = build("mini", str(language_model(tmp_path / "llm", ["a red boat, a blue car"] * 3, 40, 96, 2)), "mlp")
    save(vlm, tmp_path / "made")
    export_chat(tmp_path / "made", tmp_path / "packed", kept)
    import_mini(tmp_path / "packed", tmp_path / "again")
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("made", "again"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        room = {"float32": 0, "float16": 2**-11, "int8": 1 / 254}[kept] * value.abs().max()
        assert (value - after[name]).abs().max() <= room * 1.001, name
    export_chat(tmp_path / "again", tmp_path / "packed-again", kept)
    for name in (GRAPH, TOKENIZER, LAYOUT):
        assert (tmp_path / "packed" / name).read_bytes() == (tmp_path / "packed-again" / name).read_bytes()


def test_mini_packs_to_the_bytes_that_ship(unpacked: Path, tmp_path: Path) -> None:
    export_chat(unpacked, tmp_path)
    assert all((tmp_path / name).read_bytes() == (MINI / name).read_bytes() for name in (GRAPH, TOKENIZER, LAYOUT))


def test_transformers_answers_with_it_what_ask_answers(unpacked: Path, vlmkit, tmp_path: Path) -> None:
    """By its documented call: apply_chat_template, generate, decode the new tokens."""
    model, processor = AutoModelForImageTextToText.from_pretrained(unpacked), AutoProcessor.from_pretrained(unpacked)
    questions = "what color is the wall", "what is on the floor", "how many chairs are there"
    pictures = []
    for number in range(3):
        array = np.random.default_rng(number).integers(0, 255, (7, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(array).resize((224, 224))
        picture.save(tmp_path / f"{number}.png")
        pictures.append(picture)
    asked = [{"id": f"{n}-{k}", "image": f"{n}.png", "question": q} for n in range(3) for k, q in enumerate(questions)]
    expected = []
    for row in asked:
        content = [{"type": "image", "image": pictures[int(row["id"][0])]}, {"type": "text", "text": row["question"]}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        made = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.decode(made, skip_special_tokens=True).strip())
    found = [row["answer"] for row in records(vlmkit("ask", "--max-tokens", "8", stdin=jsonl(*asked)).stdout)]
    assert found == expected
    assert len(set(found)) > 2


def test_other_graphs_are_refused(tmp_path: Path) -> None:
    """One weight more; other frequencies of the positions; what is damaged or not there."""
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / TOKENIZER).write_bytes((MINI / TOKENIZER).read_bytes())
    more, faster = onnx.load(MINI / GRAPH), onnx.load(MINI / GRAPH)
    more.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "more"))
    (frequencies,) = (each for each in faster.graph.initializer if list(each.dims) == [16])
    doubled = 2 * onnx.numpy_helper.to_array(frequencies)
    frequencies.CopyFrom(onnx.numpy_helper.from_array(doubled, frequencies.name))
    (packed / LAYOUT).write_bytes((MINI / LAYOUT).read_bytes())
    for other in (more, faster):
        onnx.save(other, packed / GRAPH)
        with pytest.raises(VlmkitError, match=r"does not match talk-layout.json: go on from"):
            import_mini(packed, tmp_path / "out")
    (packed / GRAPH).write_bytes((MINI / GRAPH).read_bytes()[:1000])
    with pytest.raises(VlmkitError, match=r"packed is incomplete \(.+\): name another one"):
        import_mini(packed, tmp_path / "out")
    (packed / GRAPH).write_bytes((MINI / GRAPH).read_bytes())
    (packed / TOKENIZER).unlink()
    with pytest.raises(VlmkitError, match=r"packed is incomplete \(.+\): name another one"):
        import_mini(packed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mini_learns_on(vlmkit, tmp_path: Path) -> None:
    """By its name: what comes out knows what it was taught."""
    rows = []
    for number, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (60, 60), color).save(tmp_path / f"{number}.png")
        rows.append({"id": str(number), "image": f"{number}.png", "question": "which hue", "answers": [f"the {color}"]})
    (tmp_path / "hues.jsonl").write_bytes(jsonl(*rows))
    flags = "--steps", "20", "--batch-size", "3", "--lr", "1e-3"
    vlmkit("train", "instruct", "hues.jsonl", "--from", "mini", *flags, "-o", "taught")
    reported, before = (
        [row["answer"] for row in records(vlmkit("ask", "-m", model, stdin=jsonl(*rows)).stdout)]
        for model in ("taught", "mini")
    )
    assert reported == [row["answers"][0] for row in rows] != before
