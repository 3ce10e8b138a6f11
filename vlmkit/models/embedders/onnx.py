"""PyTorch models that embed through their exported towers: texts without importing PyTorch, and int8."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError, check_installed
from vlmkit.models.batching import BatchSize
from vlmkit.models.embedders.base import TorchEmbedder
from vlmkit.models.embedders.onnx_export import export_int8, export_text_tower
from vlmkit.models.embedders.onnx_towers import ExportError, OnnxTowers, open_towers
from vlmkit.models.types import Embedder, Hardware

if TYPE_CHECKING:
    import numpy as np
    import tokenizers
    from PIL.Image import Image

EXPORTER = "onnx", "onnxscript"


class OnnxTextEncoder(Embedder):
    """A model whose texts go through its exported text tower, so that a search starts without importing PyTorch.

    The first call exports the tower: `warn` is called with a line that says so, as it takes a while, or that packages
    for it are missing. Where the export fails `note` is called with the reason, and PyTorch embeds the texts. The
    PyTorch model is opened when it is needed.
    """

    def __init__(
        self,
        fingerprint: str,
        open_model: Callable[[Hardware], TorchEmbedder],
        hardware: Hardware,
        warn: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._fingerprint, self._open_model, self._hardware = fingerprint, open_model, hardware
        self._warn, self._note = warn, note
        self._towers: OnnxTowers | TorchEmbedder | None = open_towers(fingerprint, hardware.threads)
        known = self._towers or self._model
        self.device, self.dim, self.size, self.logit_scale = known.device, known.dim, known.size, known.logit_scale

    @cached_property
    def _model(self) -> TorchEmbedder:
        return self._open_model(self._hardware)

    @cached_property
    def batch(self) -> BatchSize:
        return self._model.batch

    def preprocess(self, image: "Image") -> "np.ndarray":
        return self._model.preprocess(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        return self._model.embed_images(pictures)

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        if self._towers is None:
            self._towers = self._export()
        return self._towers.embed_texts(texts)

    @property
    def text_tokenizer(self) -> "tokenizers.Tokenizer | None":
        return (self._towers or self._model).text_tokenizer

    def _export(self) -> OnnxTowers | TorchEmbedder:
        try:
            check_installed("a quick search", "vlmkit[onnx]", *EXPORTER)
        except VlmkitError as error:
            self._warn(f"PyTorch embeds texts, which takes seconds each time: {error.remedy} makes it quicker")
            return self._model
        on_cpu = self._model if self._model.device == "cpu" else self._open_model(Hardware("cpu"))
        self._warn("writing the model's text tower into the cache, once: the next search is quicker")
        try:
            return export_text_tower(on_cpu, self._fingerprint)
        except (ExportError, OSError) as error:
            self._note(f"texts are embedded by PyTorch: {error}")
            return self._model


class Int8Embedder(Embedder):
    """A model with its matrix products in int8, quantised and checked once and kept in the cache by its fingerprint.

    The model itself is opened to preprocess pictures.
    """

    def __init__(
        self, name: str, fingerprint: str, open_model: Callable[[Hardware], TorchEmbedder], hardware: Hardware
    ) -> None:
        if hardware.device not in ("auto", "cpu"):
            what = f"int8 runs on the CPU, not on {hardware.device}"
            raise VlmkitError(what, "use --precision bf16, or leave --device out")
        self._open_model = open_model
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
        return self._model.preprocess(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        import torch

        inputs = self._model.picture_inputs(torch.from_numpy(pictures))
        return self._towers.run("image", {name: value.numpy() for name, value in inputs.items()})

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        return self._towers.embed_texts(texts)

    @property
    def text_tokenizer(self) -> "tokenizers.Tokenizer":
        return self._towers.text_tokenizer
