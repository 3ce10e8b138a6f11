"""PyTorch models that embed through their exported towers: without importing PyTorch, and in int8."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError, check_installed
from vlmkit.models.batching import BatchSize
from vlmkit.models.embedders.base import TorchEmbedder
from vlmkit.models.embedders.onnx_export import export_image_tower, export_int8, export_text_tower
from vlmkit.models.embedders.onnx_towers import PIXELS, ExportError, OnnxTowers, cpu_batch, image_key, open_towers
from vlmkit.models.types import Embedder, Hardware

if TYPE_CHECKING:
    import numpy as np
    import tokenizers
    from PIL.Image import Image

EXPORTER = "onnx", "onnxscript"
WORTH_EXPORT = 16  # pictures: for fewer at once PyTorch is opened sooner than a tower is written


class OnnxEmbedder(Embedder):
    """A model on the CPU that embeds through its exported towers, which is quicker, and starts without PyTorch.

    With `quick_texts` the first text exports the text tower; the first batch of 16 pictures or more exports the image
    tower, if the model runs on the CPU and its preprocessing is known. `warn` is called with a line that says so, as
    it takes a while, or that packages for it are missing. Where the export fails `note` is called with the reason.
    What has no tower PyTorch embeds; the PyTorch model is opened when it is needed.
    """

    def __init__(
        self,
        fingerprint: str,
        open_model: Callable[[Hardware], TorchEmbedder],
        hardware: Hardware,
        *,
        quick_texts: bool,
        warn: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._fingerprint, self._open_model, self._hardware = fingerprint, open_model, hardware
        self._warn, self._note = warn, note
        self._texts = open_towers(fingerprint, hardware.threads)
        self._pictures = open_towers(image_key(fingerprint), hardware.threads) if self._hardware.is_cpu else None
        self._may_export = {"text": quick_texts, "image": self._hardware.is_cpu}
        known = self._texts or self._pictures or self._model
        self.device, self.dim, self.size, self.logit_scale = known.device, known.dim, known.size, known.logit_scale

    @cached_property
    def _model(self) -> TorchEmbedder:
        return self._open_model(self._hardware)

    @cached_property
    def batch(self) -> BatchSize:
        return cpu_batch(self._hardware) if self._hardware.is_cpu else self._model.batch

    def preprocess(self, image: "Image") -> "np.ndarray":
        steps = self._pictures and self._pictures.picture_steps
        return steps(image) if steps else self._model.preprocess(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        if self._pictures is None and len(pictures) >= WORTH_EXPORT and self._may_export["image"]:
            self._pictures = self._exported("image", export_image_tower) if self._model.picture_steps else None
        return self._pictures.embed_images({PIXELS: pictures}) if self._pictures else self._model.embed_images(pictures)

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        if self._texts is None and self._may_export["text"]:
            self._texts = self._exported("text", export_text_tower)
        return (self._texts or self._model).embed_texts(texts)

    @property
    def text_tokenizer(self) -> "tokenizers.Tokenizer | None":
        return (self._texts or self._model).text_tokenizer

    def _exported(self, side: str, export: Callable[[TorchEmbedder, str], OnnxTowers]) -> OnnxTowers | None:
        """The tower for `side`, written now; None, and not tried again, where that fails."""
        self._may_export[side] = False
        try:
            check_installed("a quick search", "vlmkit[onnx]", *EXPORTER)
        except VlmkitError as error:
            self._warn(f"PyTorch embeds {side}s, which takes seconds each time: {error.remedy} makes it quicker")
            return None
        on_cpu = self._model if self._model.device == "cpu" else self._open_model(Hardware("cpu"))
        self._warn(f"writing the model's {side} tower into the cache, once: {side}s are embedded quicker from now on")
        try:
            return export(on_cpu, self._fingerprint)
        except (ExportError, OSError) as error:
            self._note(f"{side}s are embedded by PyTorch: {error}")
            return None


class Int8Embedder(Embedder):
    """A model with its matrix products in int8, quantised and checked once and kept in the cache by its fingerprint.

    The model itself is opened to preprocess pictures where that needs PyTorch.
    """

    def __init__(
        self, name: str, fingerprint: str, open_model: Callable[[Hardware], TorchEmbedder], hardware: Hardware
    ) -> None:
        if hardware.device not in ("auto", "cpu"):
            what = f"int8 runs on the CPU, not on {hardware.device}"
            raise VlmkitError(what, "use --precision bf16, or leave --device out")
        self._open_model, self.batch = open_model, cpu_batch(hardware)
        self._towers = open_towers(fingerprint, hardware.threads) or self._export(name, fingerprint)
        self.dim, self.size, self.logit_scale = self._towers.dim, self._towers.size, self._towers.logit_scale

    @cached_property
    def _model(self) -> TorchEmbedder:
        return self._open_model(Hardware("cpu"))

    def _export(self, name: str, fingerprint: str) -> OnnxTowers:
        check_installed("--precision int8", "vlmkit[onnx]", *EXPORTER)
        try:
            return export_int8(self._model, fingerprint, name)
        except ExportError as error:
            raise VlmkitError(f"{name} has no int8 form: {error}", "use --precision fp32 or bf16") from None

    def preprocess(self, image: "Image") -> "np.ndarray":
        return (self._towers.picture_steps or self._model.preprocess)(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        if self._towers.picture_steps:
            return self._towers.embed_images({PIXELS: pictures})
        import torch

        inputs = self._model.picture_inputs(torch.from_numpy(pictures))
        return self._towers.embed_images({name: value.numpy() for name, value in inputs.items()})

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        return self._towers.embed_texts(texts)

    @property
    def text_tokenizer(self) -> "tokenizers.Tokenizer":
        return self._towers.text_tokenizer
