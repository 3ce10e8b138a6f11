"""The image tower in the cache: many pictures are embedded by ONNX Runtime, as by the model, without PyTorch."""

import subprocess
import sys
from pathlib import Path

import dual_encoders
import numpy as np
import open_clip
import pytest
import torch
from helpers import noise, records, vector
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from test_text_tower import HEAVY, SHOW_MODULES

from vlmkit.models.embedders.preprocessing import PictureSteps
from vlmkit.models.load import load_embedder
from vlmkit.models.types import Hardware

pytestmark = pytest.mark.slow

MANY, FEW = 20, 15


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PNGs of coloured clouds, wide and high."""
    folder = tmp_path_factory.mktemp("clouds")
    for number, pixels in enumerate(noise(MANY)):
        kept = 224 - 7 * number
        Image.fromarray(pixels[:, :kept] if number % 2 else pixels[:kept]).save(folder / f"{number:02}.png")
    return folder


def by_open_clip(folder: Path, paths: list[Path]) -> np.ndarray:
    """The call that open_clip documents."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        made = model.eval().encode_image(torch.stack([preprocess(Image.open(path)) for path in paths]))
    return (made / made.norm(dim=-1, keepdim=True)).numpy()


@pytest.mark.parametrize(
    "options",
    [{}, {"size": 48, "interpolation": "bilinear"}, {"size": (32, 48), "resize_mode": "squash", "mean": [0.5] * 3}],
)
def test_the_steps_give_the_numbers_of_open_clip(options: dict) -> None:
    config = PreprocessCfg(**options)
    steps, transform = PictureSteps.of_open_clip(vars(config)), image_transform_v2(config, is_train=False)
    assert steps is not None
    random = np.random.default_rng(0)
    for width, height in ((224, 224), (500, 375), (375, 500), (48, 48), (33, 400), (400, 33), (1, 1), (101, 57)):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        assert np.array_equal(steps(image), transform(image).numpy()), (width, height)


def test_steps_that_are_not_known_are_left_to_open_clip() -> None:
    for options in ({"resize_mode": "longest"}, {"size": (32, 48)}):
        assert PictureSteps.of_open_clip(vars(PreprocessCfg(**options))) is None


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_what_is_left_out_does_not_change_vectors(tmp_path: Path, pool: str) -> None:
    vision = {"image_size": 48, "layers": 2, "width": 128, "patch_size": 16, "head_width": 32, "pool_type": pool}
    text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 64, "vision_cfg": vision | {"ls_init_value": 0.3}, "text_cfg": text}
    embedder = load_embedder(str(dual_encoders._open_clip(tmp_path / "model", config, {})), Hardware("cpu"))._model
    x = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, ...]] = []
    embedder.model.visual.transformer.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    with torch.no_grad():
        expected = embedder.encode_images({"pixel_values": x})
        with embedder.only_what_vectors_need():
            lean = embedder.encode_images({"pixel_values": x})
        again = embedder.encode_images({"pixel_values": x})
    assert torch.allclose(lean, expected, atol=1e-5) and torch.equal(again, expected)
    assert seen == [(3, 10, 128), (3, 1 if pool == "tok" else 10, 128), (3, 10, 128)]


@pytest.mark.parametrize("maker", ["open_clip_quick_gelu", "open_clip_siglip"])
def test_many_pictures_go_through_the_tower(warm, environment, pictures: Path, tmp_path: Path, maker: str) -> None:
    model = getattr(dual_encoders, maker)(tmp_path / "model")
    paths = sorted(pictures.iterdir())
    towers = Path(environment["XDG_CACHE_HOME"]) / "vlmkit/towers"
    few = records(warm("embed", "-m", model, *paths[:FEW]).stdout)
    assert not towers.exists(), "a few pictures are not worth it"
    first = warm("embed", "-m", model, pictures).stdout
    expected = by_open_clip(model, paths)
    for rows in (few, records(first)):
        made = np.stack(list(map(vector, rows)))
        cosines = (made * expected[: len(rows)]).sum(axis=1) / np.linalg.norm(made, axis=1)
        assert cosines.min() > 0.9999 and rows[0]["model"] == few[0]["model"]
    (entry,) = towers.iterdir()

    command = [sys.executable, "-c", SHOW_MODULES, "embed", "-q", "-m", str(model), str(pictures)]
    second = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=True)
    assert second.stdout == first
    assert not set(HEAVY) & set(second.stderr.decode().split()[1:]), second.stderr

    held = bytearray((entry / "image.onnx").read_bytes())
    held[len(held) // 2] ^= 0xFF
    (entry / "image.onnx").write_bytes(held)
    assert warm("embed", "-m", model, pictures).stdout == first
    assert (entry / "image.onnx").read_bytes() != held, "a damaged tower is written again"


def test_preprocessing_that_is_not_known_is_left_to_pytorch(warm, environment, pictures: Path, tmp_path: Path) -> None:
    model = dual_encoders.clip(tmp_path / "model")
    assert len(records(warm("embed", "-m", model, pictures).stdout)) == MANY
    assert not (Path(environment["XDG_CACHE_HOME"]) / "vlmkit/towers").exists()


def test_int8_does_not_import_torch_again(warm, environment, pictures: Path, tmp_path: Path) -> None:
    options = ("-m", str(dual_encoders.open_clip_quick_gelu(tmp_path / "model")), "--precision", "int8")
    first = warm("embed", *options, pictures).stdout
    command = [sys.executable, "-c", SHOW_MODULES, "embed", "-q", *options, str(pictures)]
    second = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=True)
    assert second.stdout == first
    assert not set(HEAVY) & set(second.stderr.decode().split()[1:]), second.stderr


def test_a_gpu_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Hardware("cpu").is_cpu and not Hardware("cuda").is_cpu
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    assert Hardware("cpu").is_cpu and not Hardware("auto").is_cpu
