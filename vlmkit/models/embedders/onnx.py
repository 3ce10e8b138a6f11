"""Models of PyTorch that run without it: their towers, exported into the cache, by ONNX Runtime on the CPU."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vlmkit.errors import VlmkitError
from vlmkit.io.files import cache_folder
from vlmkit.models import fingerprint as fingerprints
from vlmkit.models.batching import BatchSize
from vlmkit.models.embedders.base import TorchEmbedder
from vlmkit.models.embedders.tokenizers import clean_text
from vlmkit.models.types import Embedder, Hardware

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    from PIL.Image import Image

FORMAT = 1  # of the folder
CARD = "tower.json"
TEXT_BATCH = 64
SCHEME = "int8: matrix products, weights by channel, activations as they come, 1"
TOKEN_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class ExportError(Exception):
    """A tower of this model cannot be exported, or gives other vectors; the text says why."""


class OnnxTowers:
    """The exported text tower of a model, in int8 the image tower too. `card` is what `onnx_export` wrote of it."""

    device = "cpu"

    def __init__(self, folder: Path, card: dict[str, Any], threads: int | None) -> None:
        self.dim, self.size, self.logit_scale = card["dim"], card["size"], card["logit_scale"]
        self._folder, self._card, self._threads = folder, card, threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        """N texts -> N x D float32, L2-normalised."""
        import numpy as np

        batches = [texts[i : i + TEXT_BATCH] for i in range(0, len(texts), TEXT_BATCH)]
        return np.concatenate(
            [np.zeros((0, self.dim), np.float32), *(self.run("text", self.tokens(batch)) for batch in batches)]
        )

    def tokens(self, texts: Sequence[str]) -> "dict[str, np.ndarray]":
        """What the text tower takes, each N x T int64."""
        import numpy as np

        encodings = self._tokenizer.encode_batch([clean_text(text, self._card["clean"]) for text in texts])
        names = self._card["inputs"]["text"]
        return {name: np.array([getattr(one, TOKEN_FIELDS[name]) for one in encodings], np.int64) for name in names}

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    def run(self, side: str, inputs: "dict[str, np.ndarray]") -> "np.ndarray":
        """N x D of the tower `side`, text or image."""
        if side not in self._sessions:
            self._sessions[side] = _session(self._folder / f"{side}.onnx", self._threads)
        return self._sessions[side].run(None, inputs)[0]


def _session(path: Path, threads: int | None) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def towers_folder(fingerprint: str) -> Path:
    """The place in the cache for the towers of the model with `fingerprint`."""
    return cache_folder() / "towers" / fingerprint


def open_towers(fingerprint: str, threads: int | None = None) -> OnnxTowers | None:
    """The towers of the model with `fingerprint`; None where they are missing, incomplete or damaged."""
    folder = towers_folder(fingerprint)
    try:
        card = orjson.loads((folder / CARD).read_bytes())
        if (card["form"], card["model"], card["content"]) != (FORMAT, fingerprint, content_fingerprint(folder)):
            return None
        return OnnxTowers(folder, card, threads)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def content_fingerprint(folder: Path) -> str:
    """The fingerprint of what the folder holds beside the card."""
    return fingerprints.fingerprint([path for path in sorted(folder.iterdir()) if path.name != CARD])


def int8_fingerprint(fingerprint: str) -> str:
    """The fingerprint of the int8 form of the model with `fingerprint`: its vectors are others."""
    return hashlib.sha256(f"{fingerprint} {SCHEME}".encode()).hexdigest()[:12]


class OnnxTextEncoder(Embedder):
    """A model whose texts go through its exported text tower, so that a search starts without importing PyTorch.

    The first text has the tower exported: `warn` hears that this takes a while, `note` why the model itself embeds the
    texts where that fails. The model itself is opened for what the tower cannot do.
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

    def _export(self) -> OnnxTowers | TorchEmbedder:
        from vlmkit.models.embedders.onnx_export import export_text_tower

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
        from vlmkit.models.embedders.onnx_export import export_int8

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
