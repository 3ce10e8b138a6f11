"""The grid of features of mini, as a vision model of transformers and without PyTorch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import noise
from PIL import Image
from tiny_llava import tiny_llava
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.mini_graphs import PLACES, WIDTH, Features
from vlmkit.models.embedders.graph_edit import edited
from vlmkit.models.embedders.mini import Mini
from vlmkit.models.llava.vision import MiniGridConfig, MiniGridModel, image_processor
from vlmkit.models.resolve import MINI_FOLDER


@pytest.fixture(scope="module")
def features() -> Features:
    return Features(MINI_FOLDER, 2)


@pytest.mark.slow
def test_the_grid_is_what_the_vector_is_made_of(features: Features) -> None:
    """Against the graph itself, to which the library for ONNX adds the pooled features as an output."""
    graph = onnx.load(MINI_FOLDER / "image.onnx")
    pooled = next(node.output[0] for node in graph.graph.node if node.op_type == "GlobalAveragePool")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(pooled, onnx.TensorProto.FLOAT, ["N", WIDTH, 1, 1]))
    whole = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pictures = noise(19)
    grid = features(pictures)
    assert grid.shape == (19, PLACES, WIDTH) and grid.dtype == np.float32
    assert grid.min() == 0 and 0 < grid.max() <= 6
    expected = whole.run([pooled], {"pictures": pictures})[0][:, :, 0, 0]
    assert np.allclose(grid.mean(1), expected, atol=1e-4)
    assert features(pictures[:0]).shape == (0, PLACES, WIDTH)


def test_places_are_in_reading_order(features: Features) -> None:
    picture = np.full((1, 224, 224, 3), 127, np.uint8)
    picture[:, :96, 128:] = noise(1)[:, :96, 128:]  # above, right
    change = np.abs(features(picture) - features(np.full_like(picture, 127)))[0].sum(1).reshape(7, 7)
    assert np.unravel_index(change.argmax(), (7, 7))[0] <= 2 and np.unravel_index(change.argmax(), (7, 7))[1] >= 4


def test_it_comes_without_pytorch_and_without_onnx() -> None:
    code = (
        "import sys, numpy; from pathlib import Path; from vlmkit.models.chat.mini_graphs import Features;"
        f"Features(Path({str(MINI_FOLDER)!r}), 1)(numpy.zeros((1, 224, 224, 3), numpy.uint8));"
        "print(*({'torch', 'transformers', 'onnx', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", ["image.onnx", "talk.onnx"])
def test_a_graph_that_nothing_changes_stays_as_it_is(name: str) -> None:
    """As the library for ONNX reads both."""
    stored = (MINI_FOLDER / name).read_bytes()
    assert onnx.load_from_string(edited(stored, lambda _: None)) == onnx.load_from_string(stored)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VlmkitError, match=r"image\.onnx: No such file"):
        Features(tmp_path, 1)
    (tmp_path / "image.onnx").write_bytes((MINI_FOLDER / "image.onnx").read_bytes()[:1000])
    with pytest.raises(VlmkitError, match="damaged or ends too early"):
        Features(tmp_path, 1)


def test_a_llava_on_it_trains_its_other_parts_and_reloads(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path).model
    processor = AutoProcessor.from_pretrained(tmp_path)
    pictures = [Image.fromarray(array) for array in noise(2)]
    inputs = processor(images=pictures, text=["<user><image>a dog<reply>at the shop</s>"] * 2, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * PLACES
    out = model(**inputs, labels=inputs["input_ids"])
    out.loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []
    assert not any(name.startswith("model.vision_tower") for name in model.state_dict())
    again, reported = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(reported.values())
    assert torch.equal(again(**inputs).logits, out.logits)


def test_pixels_are_exact_in_every_precision(features: Features) -> None:
    pictures = noise(2)
    tower = MiniGridModel(MiniGridConfig())
    pixels = image_processor()([Image.fromarray(array) for array in pictures], return_tensors="pt")["pixel_values"]
    assert (pixels.permute(0, 2, 3, 1).numpy() == pictures).all(), "a picture of the right size is left alone"
    expected = features(pictures)
    for kind in (torch.uint8, torch.float32, torch.bfloat16, torch.float16):
        out = tower(pixels.to(kind))
        assert (out.last_hidden_state.numpy() == expected).all()
        assert out.hidden_states[-1] is out.last_hidden_state


def test_pictures_are_prepared_nearly_as_mini_does(photos: Path) -> None:
    prepare, mini = image_processor(), Mini()
    for name in ("coffee.png", "chelsea.png", "rocket.jpg"):
        image = Image.open(photos / name).convert("RGB")
        other = prepare(image, return_tensors="pt")["pixel_values"][0].permute(1, 2, 0).numpy()
        assert np.abs(mini.preprocess(image).astype(int) - other).mean() < 3


def test_another_image_tower_is_refused() -> None:
    with pytest.raises(VlmkitError, match="trained on the image tower 0123456789ab"):
        MiniGridModel(MiniGridConfig(identity="0123456789ab"))
