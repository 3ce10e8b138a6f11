"""Models of open_clip and transformers, held against the call that the library documents."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import dual_encoders
import numpy as np
import open_clip
import pytest
import torch
from conftest import SCRIPT
from helpers import jsonl, picture, records, vector
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from vlmkit.errors import VlmkitError
from vlmkit.models.batching import BatchSize
from vlmkit.models.embedders.base import TorchEmbedder
from vlmkit.models.load import load_embedder
from vlmkit.models.types import Hardware

pytestmark = pytest.mark.slow

TEXTS = ["a Cat", "x", "A dog, A Dog! it's 3 dogs", "tail of a long text that is cut " * 20, "one two"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small model, by the name of its maker."""
    place = tmp_path_factory.mktemp("models")
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = getattr(dual_encoders, name)(place / name)
        return folders[name]

    return get


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of odd sizes, one grey, one that its EXIF orientation turns."""
    folder = tmp_path_factory.mktemp("views")
    random = np.random.default_rng(1)
    for name, shape in (("wide", (61, 143, 3)), ("high", (200, 77, 3)), ("tiny", (9, 5, 3)), ("grey", (64, 50))):
        cells = random.integers(0, 256, (6, 8, 3)[: len(shape)], np.uint8)
        Image.fromarray(cells).resize(shape[1::-1], Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "wide.png").save(folder / "turned.png", exif=exif)
    return sorted(folder.iterdir())


def _opened(paths: list[Path]) -> list[Image.Image]:
    return [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in paths]


def by_open_clip(folder: Path, paths: list[Path], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        image_features = model.encode_image(torch.stack([preprocess(image) for image in _opened(paths)]))
        text_features = model.encode_text(tokenizer(texts))
    return _unit(image_features), _unit(text_features)


def by_transformers(folder: Path, paths: list[Path], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    padding: dict[str, object] = {"padding": True, "max_length": 77}
    if model.config.model_type != "clip":  # documented: trained on lower case, padded to 64
        texts, padding = [text.lower() for text in texts], {"padding": "max_length", "max_length": 64}
    inputs = processor(text=texts, images=_opened(paths), return_tensors="pt", truncation=True, **padding)
    with torch.no_grad():
        outputs = model(**inputs)
    return _unit(outputs.image_embeds), _unit(outputs.text_embeds)


def _unit(features: torch.Tensor) -> np.ndarray:
    return (features / features.norm(dim=-1, keepdim=True)).numpy()


LIBRARY = {
    "open_clip_quick_gelu": by_open_clip,
    "open_clip_siglip": by_open_clip,
    "clip": by_transformers,
    "siglip": by_transformers,
    "siglip2": by_transformers,
}


def embedded(run, folder: object, paths: list[Path], *options: object) -> tuple[np.ndarray, np.ndarray, str]:
    """Vectors of pictures and of TEXTS by the installed command, and the identity of the model."""
    rows = jsonl(*({"image": str(path)} for path in paths), *({"text": text} for text in TEXTS))
    found = records(run("embed", "-m", folder, *options, stdin=rows).stdout)
    vectors = np.stack([vector(record) for record in found])
    return vectors[: len(paths)], vectors[len(paths) :], found[0]["model"]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("name", LIBRARY)
def test_vectors_are_those_of_the_library(warm, made, views: list[Path], name: str) -> None:
    images, texts, identity = embedded(warm, made(name), views)
    expected_images, expected_texts = LIBRARY[name](made(name), views, TEXTS)
    assert cosines(images, expected_images).min() > 0.9999
    assert cosines(texts, expected_texts).min() > 0.9999
    assert cosines(images, np.roll(images, 1, axis=0)).max() < 0.999, "the pictures are distinguished"
    assert cosines(texts, np.roll(texts, 1, axis=0)).max() < 0.999
    assert identity.startswith(f"{made(name)}@") and len(identity.rpartition("@")[2]) == 12


def test_the_activation_is_that_of_the_configuration(made, views: list[Path], tmp_path: Path) -> None:
    """QuickGELU and GELU, followed by weights so large that the difference shows: each as its configuration says."""
    weights = load_file(made("open_clip_quick_gelu") / "open_clip_model.safetensors")
    large = {name: 60 * value if "mlp.c_proj.weight" in name else value for name, value in weights.items()}
    found = []
    for quick in (True, False):
        folder = shutil.copytree(made("open_clip_quick_gelu"), tmp_path / f"quick {quick}")
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["quick_gelu"] = quick
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        save_file(large, folder / "open_clip_model.safetensors")
        found.append(loaded(folder, views)[0])
        assert cosines(found[-1], by_open_clip(folder, views, TEXTS)[0]).min() > 0.999999
    assert cosines(*found).max() < 0.99999


def test_identity_is_over_weights_and_preprocessing_alone(made, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, file in (("clip", "preprocessor_config.json"), ("open_clip_siglip", "open_clip_config.json")):
        folder = shutil.copytree(made(name), tmp_path / name)

        def digits(folder: Path = folder) -> str:
            return load_embedder(str(folder)).identity.rpartition("@")[2]

        first = digits()
        for other in ("README.md", "optimizer.safetensors", "training_args.json"):
            (folder / other).write_text("unrelated")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/model.safetensors").write_text("unrelated")
        assert digits() == first
        if not (folder / file).exists():
            file = "processor_config.json"
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace("0.48145466", "0.5").replace("squash", "shortest"))
        assert (folder / file).read_text() != text and digits() != first


def test_pickled_weights_are_refused(warm, made, tmp_path: Path) -> None:
    for name in ("clip", "open_clip_siglip"):
        folder = shutil.copytree(made(name), tmp_path / name)
        for weights in folder.glob("*.safetensors"):
            weights.rename(weights.with_suffix(".bin"))
        done = warm("embed", "-m", folder, "--text", "-o", "out.jsonl", stdin=b"a\n", code=2)
        assert b"pickle" in done.stderr and b"safetensors" in done.stderr and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("ViT-B-32:laion2b_s34b_b79", "did you mean ViT-B-32:laion2b_s34b_b79k"),
        ("ViT-B-23", "did you mean"),
        ("no-such-model", "use mini"),
        ("local-dir:nowhere", "no such folder"),
        ("hf-hub:no/such-model", "hf download no/such-model"),
        ("no/such-model", "hf download no/such-model"),
        ("ViT-B-32:laion2b_s34b_b79k", "hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_names_that_lead_nowhere(warm, tmp_path: Path, name: str, reported: str) -> None:
    """One line, before anything is written."""
    done = warm("embed", "-m", name, "--text", "-o", "out.jsonl", stdin=b"a\n", code=2)
    assert reported in done.stderr.decode() and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_a_hub_that_does_not_answer(vlmkit, environment, tmp_path: Path) -> None:
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    done = vlmkit("embed", "-m", "no/such-model", "--text", "-o", "out.jsonl", stdin=b"a\n", code=2)
    assert b"hf download no/such-model" in done.stderr and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def in_the_cache(folder: Path, repo: str, home: Path) -> Path:
    """`folder` laid into the cache of the Hub as a download of `repo` would be."""
    place = home / "hub" / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    return place


def test_the_cache_of_the_hub_is_enough(vlmkit, environment, made, views: list[Path], tmp_path: Path) -> None:
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    in_the_cache(made("clip"), "openai/clip-vit-base-patch32", tmp_path / "hf")
    in_the_cache(made("open_clip_siglip"), "toys/siglip", tmp_path / "hf")
    for given, name, maker in (
        ("clip-b32", "openai/clip-vit-base-patch32", "clip"),
        ("hf-hub:toys/siglip", "hf-hub:toys/siglip", "open_clip_siglip"),
    ):
        images, texts, identity = embedded(vlmkit, given, views)
        expected = LIBRARY[maker](made(maker), views, TEXTS)
        assert identity.startswith(f"{name}@")
        assert cosines(images, expected[0]).min() > 0.9999 and cosines(texts, expected[1]).min() > 0.9999


def loaded(folder: Path, paths: list[Path], precision: str | None = None) -> tuple[np.ndarray, np.ndarray, str]:
    """Vectors of pictures and of TEXTS in this process, and the identity of the model."""
    model = load_embedder(str(folder), Hardware("cpu", precision=precision))
    pictures = np.stack([model.preprocess(image) for image in _opened(paths)])
    return model.embed_images(pictures), model.embed_texts(TEXTS), model.identity


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_no_part_of_the_identity(made, views: list[Path], precision: str) -> None:
    for name in ("clip", "open_clip_quick_gelu", "siglip2"):
        images, texts, identity = loaded(made(name), views, precision)
        other_images, other_texts, other = loaded(made(name), views)
        assert identity == other
        assert cosines(images, other_images).min() > 0.98 and cosines(texts, other_texts).min() > 0.98
        assert not np.array_equal(images, other_images)


def test_half_precision_holds_for_attention(made) -> None:
    """Weights of another type would be converted at each call, which takes longer than fp32."""
    model = load_embedder(str(made("open_clip_quick_gelu")), Hardware("cpu", precision="bf16")).model
    types = {value.dtype for name, value in model.named_parameters() if ".attn." in name}
    assert types == {torch.bfloat16}


def test_int8_is_another_model(warm, environment, made, views: list[Path], tmp_path: Path) -> None:
    folder = made("open_clip_quick_gelu")
    whole_images, whole_texts, whole = loaded(folder, views)
    images, texts, identity = embedded(warm, folder, views, "--precision", "int8")
    assert identity.startswith(f"{folder}+int8@") and identity.rpartition("@")[2] != whole.rpartition("@")[2]
    assert cosines(images, whole_images).min() > 0.97 and cosines(texts, whole_texts).min() > 0.97
    assert not np.array_equal(images, whole_images)
    rows = jsonl({"image": str(views[0])})
    warm("index", "-i", "./i", stdin=warm("embed", "-m", folder, "--precision", "int8", stdin=rows).stdout)
    (hit,) = records(warm("search", "-i", "./i", "--image", views[0]).stdout)
    assert hit["score"] > 0.999
    done = warm("search", "-i", "./i", "--image", views[0], "--precision", "fp32", code=2)
    assert identity.encode() in done.stderr and whole.encode() in done.stderr


def test_int8_that_changes_too_much_is_refused(warm, made, tmp_path: Path) -> None:
    """A weight far above the others makes all others of its row vanish in int8."""
    folder = shutil.copytree(made("open_clip_quick_gelu"), tmp_path / "wild")
    weights = load_file(folder / "open_clip_model.safetensors")
    for name, value in weights.items():
        if name.endswith(("c_fc.weight", "c_proj.weight")):
            value[:, 0] = 300.0 * value.abs().max()
    save_file(weights, folder / "open_clip_model.safetensors")
    done = warm("embed", "-m", folder, "--precision", "int8", "--text", stdin=b"a\n", code=2)
    assert b"int8 changes" in done.stderr and b"0.98 is needed" in done.stderr and b"cosine" in done.stderr


def test_mini_and_missing_devices_are_refused(warm, made) -> None:
    done = warm("embed", "--precision", "int8", "--text", stdin=b"a\n", code=2)
    assert done.stderr == b"vlmkit: mini runs in fp32, not in int8: leave --precision out\n"
    if not torch.cuda.is_available():
        for options in (("--device", "cuda"), ("--device", "cuda", "--precision", "int8")):
            done = warm("embed", "-m", made("clip"), *options, "--text", stdin=b"a\n", code=2)
            assert b"cuda" in done.stderr and done.stderr.count(b"\n") == 1


def test_verbose_says_model_device_and_precision(warm, made) -> None:
    reported = warm(
        "embed", "-m", made("siglip"), "-v", "--device", "cpu", "--precision", "bf16", "--text", stdin=b"a\n"
    )
    assert f"model {made('siglip')}@" in reported.stderr.decode() and b"device cpu, precision bf16" in reported.stderr


def test_batch_sizes(warm, made, views: list[Path]) -> None:
    two = embedded(warm, made("siglip2"), views, "--batch-size", "2")[0]
    assert cosines(two, loaded(made("siglip2"), views)[0]).min() > 0.99999
    for size in ("-1", "many", "70000"):
        assert b"--batch-size" in warm("embed", views[0], f"--batch-size={size}", code=2).stderr


def test_a_batch_grows_while_that_pays() -> None:
    sizes, seen = BatchSize(32, 512), []
    for _ in range(8):
        seen.append(sizes.size)
        sizes.learn(sizes.size, sizes.size / min(sizes.size, 128))  # no quicker above 128
    assert seen == [32, 32, 64, 128, 256, 128, 128, 128]
    sizes.too_large(128)
    assert sizes.size == 64 == sizes.largest


class Narrow(TorchEmbedder):
    """A model that has memory for two inputs at once."""

    preprocess = tokens = encode_texts = None

    def encode_images(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(inputs["pixel_values"]) > 2:
            raise torch.OutOfMemoryError("too many")
        return inputs["pixel_values"]


def test_a_batch_that_does_not_fit_is_halved_and_done_again() -> None:
    narrow = Narrow(Hardware("cpu"))
    pictures = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    expected = pictures / np.linalg.norm(pictures, axis=1, keepdims=True)
    assert np.allclose(narrow.embed_images(pictures), expected, atol=1e-6)
    assert narrow.batch.size <= 3
    with pytest.raises(VlmkitError, match="one input alone"):
        Narrow.encode_images, narrow.encode_images = Narrow.encode_images, _never  # type: ignore[method-assign]
        narrow.embed_images(pictures)


def _never(_: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("too many")


def test_arguments_that_are_not_utf8(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    vlmkit("index", stdin=vlmkit("embed", "a.png").stdout)
    for line in ((b"search", b"caf\xe9"), (b"classify", b"a.png", b"--labels", b"caf\xe9,tea")):
        environment = dict(os.environ, XDG_DATA_HOME=str(tmp_path / "home/XDG_DATA_HOME"))
        done = subprocess.run([os.fsencode(SCRIPT), *line], capture_output=True, cwd=tmp_path, env=environment)
        assert done.returncode == 2 and b"not UTF-8" in done.stderr and done.stderr.count(b"\n") == 1
