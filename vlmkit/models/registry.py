"""Models by name. A backend is one class in one file, imported only when its name is asked for."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from vlmkit.errors import VlmkitError
from vlmkit.io.records import fingerprint_of, name_of

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from vlmkit.models.batching import BatchSize
    from vlmkit.models.resolve import Checkpoint

__all__ = ["Embedder", "Hardware", "fingerprint_of", "load_embedder", "name_of"]

EMBEDDERS = {
    "mini": "vlmkit.models.embedders.mini:Mini",
    "open_clip": "vlmkit.models.embedders.open_clip:OpenClip",
    "transformers": "vlmkit.models.embedders.transformers:Transformers",
}
INT8 = "+int8"  # ends the name of a model in int8, whose vectors are not those of fp32


class Embedder(Protocol):
    """A dual encoder: pictures and texts as unit vectors in one space.

    `identity` is `name@` and the fingerprint of weights and preprocessing, twelve hex digits; the loader sets it.
    `dim` is D, `size` the side in pixels that pictures are scaled to, `logit_scale` what cosines are multiplied by
    before a softmax gives probabilities, `device` where it runs, `batch` how many go through at once.
    """

    identity: str

    @property
    def device(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def logit_scale(self) -> float: ...
    @property
    def batch(self) -> "BatchSize": ...

    def preprocess(self, image: "Image") -> "np.ndarray":
        """One RGB picture as the array that `embed_images` takes a stack of. Runs in several threads."""

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        """N preprocessed pictures -> N x D float32, L2-normalised."""

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        """N texts -> N x D float32, L2-normalised."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and how models run.

    `device` auto, cpu, cuda or mps; `threads` None for all cores; `precision` fp32, bf16, fp16 or int8, None for what
    the model's name says, else fp32.
    """

    device: str = "auto"
    threads: int | None = None
    precision: str | None = None


def _silent(_: str) -> None:
    pass


def load_embedder(
    name: str,
    hardware: Hardware = Hardware(),
    *,
    quick_texts: bool = False,
    warn: Callable[[str], None] = _silent,
    note: Callable[[str], None] = _silent,
) -> Embedder:
    """The model called `name`. Raises VlmkitError where the name is unknown or the files cannot be opened.

    With `quick_texts` texts go through a tower that starts without PyTorch, written when first needed; `warn` and
    `note` hear of that (see quick.py).
    """
    from vlmkit.models.resolve import find

    if name.endswith(INT8):
        name = name.removesuffix(INT8)
        hardware = replace(hardware, precision=hardware.precision or "int8")
    checkpoint = find(name)
    fingerprint = checkpoint.fingerprint()
    if checkpoint.backend == "mini":
        return _identified(_open(checkpoint, hardware), checkpoint.name, fingerprint)

    def open_model(how: Hardware) -> Any:
        return _open(checkpoint, how)

    if hardware.precision == "int8":
        from vlmkit.models.embedders.onnx import Int8, int8_fingerprint

        own = int8_fingerprint(fingerprint)
        return _identified(Int8(checkpoint.name, own, open_model, hardware), checkpoint.name + INT8, own)
    if quick_texts and hardware.device in ("auto", "cpu") and hardware.precision in (None, "fp32"):
        from vlmkit.models.embedders.onnx import QuickTexts

        quick = QuickTexts(fingerprint, open_model, hardware, warn, note)
        return _identified(quick, checkpoint.name, fingerprint)
    return _identified(open_model(hardware), checkpoint.name, fingerprint)


def _identified(embedder: Embedder, name: str, fingerprint: str) -> Embedder:
    embedder.identity = f"{name}@{fingerprint}"
    return embedder


def _open(checkpoint: "Checkpoint", hardware: Hardware) -> Embedder:
    module, attribute = EMBEDDERS[checkpoint.backend].split(":")
    backend = getattr(importlib.import_module(module), attribute)
    if checkpoint.backend == "mini":
        if hardware.precision not in (None, "fp32"):
            raise VlmkitError(f"mini runs in fp32, not in {hardware.precision}", "leave --precision out")
        return backend(str(checkpoint.folder), hardware)
    return backend(checkpoint, hardware)
