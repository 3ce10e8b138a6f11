"""Write the towers of a PyTorch model as ONNX, so that later commands run them without importing PyTorch."""

import contextlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vlmkit.errors import VlmkitError
from vlmkit.models.samples import TEXTS, pictures
from vlmkit.models.torch_embedder import TorchEmbedder
from vlmkit.models.tower import CARD, FORM, Tower, content, open_tower, place

if TYPE_CHECKING:
    import numpy as np
    import torch

SAME, CLOSE = 0.9999, 0.98  # the lowest cosine to PyTorch in fp32: of the text tower, of int8


class NoTower(Exception):
    """This model's tower cannot be written, or is not the same; the text says why."""


def write_text_tower(embedder: TorchEmbedder, model: str) -> Tower:
    """The text tower of `embedder` (on the CPU, in fp32) in the cache, under the digits `model`. Raises NoTower."""
    with _entry(embedder, model) as (folder, card):
        _write_texts(embedder, folder, card)
        tower = Tower(folder, card, None)
        _same_tokens(embedder, tower)
        card["cosine"] = _lowest(embedder.embed_texts(TEXTS), tower.embed_texts(TEXTS))
        if card["cosine"] < SAME:
            raise NoTower(f"the exported text tower differs, cosine {card['cosine']:.5f}")
    return _opened(model)


def write_int8(embedder: TorchEmbedder, model: str, name: str) -> Tower:
    """Both towers of `embedder` (on the CPU, in fp32) with their matrix products in int8, weights by channel.

    ONNX Runtime's dynamic quantisation: weights once, activations as they come. Raises NoTower, and VlmkitError where
    a vector of the samples has a cosine under 0.98 to that of fp32.
    """
    with _entry(embedder, model) as (folder, card):
        made = pictures(embedder)
        _write_texts(embedder, folder, card)
        _export(embedder.encode_images, embedder.picture_inputs(made), embedder, folder, "image", card)
        for side in ("text", "image"):
            _quantize(folder, side)
        tower = Tower(folder, card, None)
        _same_tokens(embedder, tower)
        inputs = {k: v.numpy() for k, v in embedder.picture_inputs(made).items()}
        texts = _lowest(embedder.embed_texts(TEXTS), tower.embed_texts(TEXTS))
        images = _lowest(embedder.embed_images(made.numpy()), tower.run("image", inputs))
        card["cosine"] = min(texts, images)
        if card["cosine"] < CLOSE:
            what = f"int8 changes {name} too much: cosine to fp32 {images:.3f} for pictures, {texts:.3f} for texts"
            raise VlmkitError(f"{what} ({CLOSE} is needed)", "use --precision fp32 or bf16")
    return _opened(model)


@contextlib.contextmanager
def _entry(embedder: TorchEmbedder, model: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A temporary folder and its card, which take their place in the cache when the block ends well."""
    final = place(model)
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{model}.", dir=final.parent))
    card: dict[str, Any] = {"form": FORM, "model": model, "inputs": {}}
    card |= {"dim": embedder.dim, "size": embedder.size, "logit_scale": embedder.logit_scale}
    try:
        yield made, card
        card["digits"] = content(made)
        (made / CARD).write_bytes(orjson.dumps(card))
        shutil.rmtree(final, ignore_errors=True)
        with contextlib.suppress(OSError):  # another command was quicker
            os.rename(made, final)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _opened(model: str) -> Tower:
    if (tower := open_tower(model)) is None:
        raise NoTower("the cache cannot be written")
    return tower


def _write_texts(embedder: TorchEmbedder, folder: Path, card: dict[str, Any]) -> None:
    fast = embedder.fast_tokenizer()
    if fast is None:
        raise NoTower("its tokenizer needs PyTorch")
    fast.tokenizer.save(str(folder / "tokenizer.json"))
    card["clean"] = fast.clean
    _export(embedder.encode_texts, embedder.tokens(TEXTS[:2]), embedder, folder, "text", card)


def _export(
    encode: "Callable[[dict[str, torch.Tensor]], torch.Tensor]",
    inputs: "dict[str, torch.Tensor]",
    embedder: TorchEmbedder,
    folder: Path,
    side: str,
    card: dict[str, Any],
) -> None:
    """`encode` as folder/side.onnx, for any number of rows; vectors are normalised inside the graph."""
    import torch

    names = list(inputs)

    class Encode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = embedder.model

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            vectors = encode(dict(zip(names, values, strict=True)))
            return torch.nn.functional.normalize(vectors, dim=-1)

    rows = torch.export.Dim("rows")
    card["inputs"][side] = names
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own
            torch.onnx.export(
                Encode().eval(),
                tuple(inputs.values()),
                str(folder / f"{side}.onnx"),
                input_names=names,
                output_names=["vectors"],
                dynamic_shapes=(tuple({0: rows} for _ in names),),
                dynamo=True,
                external_data=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base
        raise NoTower(f"it cannot be exported ({' '.join(str(error).split())[:160]})") from None


def _quantize(folder: Path, side: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, made = folder / f"{side}.onnx", folder / f"{side}.int8.onnx"
    quantize_dynamic(
        source, made, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
    )
    for path in folder.glob(f"{side}.onnx*"):
        path.unlink()
    made.rename(source)


def _same_tokens(embedder: TorchEmbedder, tower: Tower) -> None:
    ours, theirs = tower.tokens(TEXTS), embedder.tokens(TEXTS)
    for name, value in theirs.items():
        if ours[name].shape != tuple(value.shape) or (ours[name] != value.numpy()).any():
            raise NoTower("its tokens without PyTorch differ")


def _lowest(one: "np.ndarray", other: "np.ndarray") -> float:
    """The lowest cosine of the rows of two arrays of unit vectors."""
    return float((one * other).sum(axis=1).min())
