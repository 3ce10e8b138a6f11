"""Write the towers of a PyTorch model into the cache as ONNX, compared with the model on probe inputs."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vlmkit.errors import VlmkitError, reason_of
from vlmkit.io.files import atomic_folder
from vlmkit.models.embedders.base import TorchEmbedder
from vlmkit.models.embedders.onnx_towers import (
    CARD,
    FORMAT,
    ExportError,
    OnnxTowers,
    content_fingerprint,
    image_key,
    open_towers,
    towers_folder,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    Inputs = dict[str, torch.Tensor]

LOWEST_COSINE, LOWEST_INT8_COSINE = 0.9999, 0.98  # to PyTorch in fp32
PROBE_TEXTS = [
    "a photo of a cat.",
    "",
    "x",
    "A Red CAR, parked — in the RAIN!",
    "two dogs   running\ton the\nbeach  ",
    "it's the neighbour's; they'll say we've won, I'd guess 'tis",
    "3.14159 and 2,718 in 2024 (№ 42) #hash @home 100% $5 a_b-c/d\\e",
    "Ein großes Fäßchen voller Äpfel, naïve café",
    "東京の夜景、雨の中の人々",
    "Москва ночью, красная площадь",
    "صورة قطة تجلس على سجادة",
    "a cat \U0001f408 and a heart ❤️ \U0001f468‍\U0001f469‍\U0001f467",
    "&lt;b&gt;bold &amp; brave&lt;/b&gt; &eacute;",
    "schÃ¶n mojibake â€œquotedâ€\x9d",
    "“curly quotes” … ﬁne ligatures ½ ²",
    "zero\u200bwidth and a non\u00a0breaking space",
    "supercalifragilisticexpialidocious" * 3,
    "a lighthouse at the edge of the sea " * 3,
    " ".join(["long", "text", "that", "is", "cut"] * 40),
    "!!!???...---" * 30,
]
PROBE_SIZES = ((64, 64), (97, 61), (50, 201), (320, 240), (16, 16), (333, 250))


def probe_pictures(embedder: TorchEmbedder) -> "torch.Tensor":
    """A stack of preprocessed pictures: gradients with stripes, noise and coarse noise, in several proportions."""
    import numpy as np
    import torch
    from PIL import Image

    random = np.random.default_rng(0)
    made = []
    for number, (width, height) in enumerate(PROBE_SIZES):
        y, x = np.mgrid[:height, :width]
        smooth = np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin((x + y) / (3 + number))], axis=-1)
        noise = random.integers(0, 256, (height, width, 3))
        coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height))
        made += [Image.fromarray(array.astype(np.uint8)) for array in (smooth, noise)] + [coarse]
    pictures = np.stack([embedder.preprocess(image) for image in made])
    if (steps := embedder.picture_steps) and not np.array_equal(pictures, np.stack([steps(image) for image in made])):
        raise ExportError("its preprocessing gives other pictures without PyTorch")
    return torch.from_numpy(pictures)


def export_text_tower(embedder: TorchEmbedder, fingerprint: str) -> OnnxTowers:
    """The text tower of `embedder` (on the CPU, in fp32) in the cache, by `fingerprint`. Raises ExportError."""
    with _new_folder(embedder, fingerprint) as (folder, card):
        towers = _export_texts(embedder, folder, card)
        _check_tokens(embedder, towers)
        card["cosine"] = _lowest_cosine(embedder.embed_texts(PROBE_TEXTS), towers.embed_texts(PROBE_TEXTS))
        if card["cosine"] < LOWEST_COSINE:
            raise ExportError(f"the exported text tower differs, cosine {card['cosine']:.5f}")
    return _opened(fingerprint)


def export_image_tower(embedder: TorchEmbedder, fingerprint: str) -> OnnxTowers:
    """The image tower of `embedder` (on the CPU, in fp32) in the cache, by `fingerprint`. Raises ExportError."""
    key = image_key(fingerprint)
    with _new_folder(embedder, key) as (folder, card):
        if embedder.picture_steps is None:
            raise ExportError("its preprocessing needs PyTorch")
        pictures = probe_pictures(embedder)
        _export_images(embedder, pictures, folder, card)
        towers = OnnxTowers(folder, card, None)
        made = towers.embed_images(_arrays(embedder.picture_inputs(pictures)))
        card["cosine"] = _lowest_cosine(embedder.embed_images(pictures.numpy()), made)
        if card["cosine"] < LOWEST_COSINE:
            raise ExportError(f"the exported image tower differs, cosine {card['cosine']:.5f}")
    return _opened(key)


def export_int8(embedder: TorchEmbedder, fingerprint: str, name: str) -> OnnxTowers:
    """Both towers of `embedder` (on the CPU, in fp32) with their matrix products in int8, weights by channel.

    ONNX Runtime's dynamic quantisation: weights once, activations as they come. Raises ExportError, and VlmkitError
    where the vector of a probe input has a cosine under 0.98 to that of fp32.
    """
    with _new_folder(embedder, fingerprint) as (folder, card):
        pictures = probe_pictures(embedder)
        towers = _export_texts(embedder, folder, card)
        _export_images(embedder, pictures, folder, card)
        for side in ("text", "image"):
            _quantize(folder, side)
        _check_tokens(embedder, towers)
        texts = _lowest_cosine(embedder.embed_texts(PROBE_TEXTS), towers.embed_texts(PROBE_TEXTS))
        quantized = towers.embed_images(_arrays(embedder.picture_inputs(pictures)))
        images = _lowest_cosine(embedder.embed_images(pictures.numpy()), quantized)
        card["cosine"] = min(texts, images)
        if card["cosine"] < LOWEST_INT8_COSINE:
            what = f"int8 changes {name} too much: cosine to fp32 {images:.3f} for pictures, {texts:.3f} for texts"
            raise VlmkitError(f"{what} ({LOWEST_INT8_COSINE} is needed)", "use --precision fp32 or bf16")
    return _opened(fingerprint)


@contextlib.contextmanager
def _new_folder(embedder: TorchEmbedder, fingerprint: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A temporary folder and its card, which take their place in the cache when the block ends well."""
    final = towers_folder(fingerprint)
    final.parent.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {"form": FORMAT, "model": fingerprint}
    card |= {"dim": embedder.dim, "size": embedder.size, "logit_scale": embedder.logit_scale}
    with atomic_folder(final, replace=True) as folder:
        yield folder, card
        card["content"] = content_fingerprint(folder)
        (folder / CARD).write_bytes(orjson.dumps(card))


def _opened(fingerprint: str) -> OnnxTowers:
    if (towers := open_towers(fingerprint)) is None:
        raise ExportError("the cache cannot be written")
    return towers


def _export_texts(embedder: TorchEmbedder, folder: Path, card: dict[str, Any]) -> OnnxTowers:
    """Tokenizer and text tower in `folder`; opened when first used."""
    fast = embedder.fast_tokenizer()
    if fast is None:
        raise ExportError("its tokenizer needs PyTorch")
    fast.tokenizer.save(str(folder / "tokenizer.json"))
    inputs = embedder.tokens(PROBE_TEXTS[:2])
    _export(embedder, embedder.encode_texts, inputs, folder / "text.onnx")
    card |= {"clean": fast.clean, "inputs": {"text": list(inputs)}}
    return OnnxTowers(folder, card, None)


def _export_images(embedder: TorchEmbedder, pictures: "torch.Tensor", folder: Path, card: dict[str, Any]) -> None:
    """Image tower in `folder`, and in `card` what is done to pictures before, where that needs no PyTorch."""
    if steps := embedder.picture_steps:
        card["picture"] = dataclasses.asdict(steps)
    with embedder.only_what_vectors_need():
        _export(embedder, embedder.encode_images, embedder.picture_inputs(pictures), folder / "image.onnx")


def _arrays(inputs: "Inputs") -> "dict[str, np.ndarray]":
    return {name: value.numpy() for name, value in inputs.items()}


def _export(embedder: TorchEmbedder, encode: "Callable[[Inputs], torch.Tensor]", inputs: "Inputs", path: Path) -> None:
    """`encode` as the graph `path`, for any number of rows; vectors are normalised inside the graph."""
    import torch

    names = list(inputs)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = embedder.model

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(encode(dict(zip(names, values, strict=True))), dim=-1)

    rows = torch.export.Dim("rows")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own
            torch.onnx.export(
                Encoder().eval(),
                tuple(inputs.values()),
                str(path),
                input_names=names,
                output_names=["vectors"],
                dynamic_shapes=(tuple({0: rows} for _ in names),),
                dynamo=True,
                external_data=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base
        raise ExportError(f"it cannot be exported ({reason_of(error)})") from None


def _quantize(folder: Path, side: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, made = folder / f"{side}.onnx", folder / f"{side}.int8.onnx"
    quantize_dynamic(
        source, made, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
    )
    for path in folder.glob(f"{side}.onnx*"):
        path.unlink()
    made.rename(source)


def _check_tokens(embedder: TorchEmbedder, towers: OnnxTowers) -> None:
    import numpy as np

    found = towers.tokens(PROBE_TEXTS)
    if any(not np.array_equal(found[name], value) for name, value in embedder.tokens(PROBE_TEXTS).items()):
        raise ExportError("its exported tokenizer gives other tokens")


def _lowest_cosine(one: "np.ndarray", other: "np.ndarray") -> float:
    """The lowest cosine of the rows of two arrays of unit vectors."""
    return float((one * other).sum(axis=1).min())
