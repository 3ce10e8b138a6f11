"""A PyTorch model with its matrix products in int8, on the CPU by ONNX Runtime."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.models import Hardware
from vlmkit.models.batch import BatchSize
from vlmkit.models.torch_embedder import TorchEmbedder
from vlmkit.models.tower import open_tower

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SCHEME = "int8: matrix products, weights by channel, activations as they come, 1"


def digits_in_int8(digits: str) -> str:
    """The digits of the int8 form of the model with `digits`: its vectors are others."""
    return hashlib.sha256(f"{digits} {SCHEME}".encode()).hexdigest()[:12]


class Int8:
    """The int8 form of a model, quantised and measured once and kept in the cache under its own digits."""

    device = "cpu"

    def __init__(
        self, name: str, digits: str, open_model: Callable[[Hardware], TorchEmbedder], hardware: Hardware
    ) -> None:
        if hardware.device not in ("auto", "cpu"):
            raise VlmkitError(
                f"int8 runs on the CPU, not on {hardware.device}", "use --precision bf16, or leave --device out"
            )
        self._open_model = open_model
        self._whole: TorchEmbedder | None = None
        self._tower = open_tower(digits, hardware.threads) or self._made(name, digits)
        self.dim, self.size, self.logit_scale = self._tower.dim, self._tower.size, self._tower.logit_scale
        self.batch = BatchSize()

    def _made(self, name: str, digits: str):
        from vlmkit.models.export import NoTower, write_int8

        try:
            return write_int8(self._model(), digits, name)
        except NoTower as error:
            raise VlmkitError(f"{name} has no int8 form: {error}", "use --precision fp32 or bf16") from None

    def _model(self) -> TorchEmbedder:
        if self._whole is None:
            self._whole = self._open_model(Hardware("cpu"))
        return self._whole

    def preprocess(self, image: "Image") -> "np.ndarray":
        return self._model().preprocess(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        import torch

        inputs = self._model().picture_inputs(torch.from_numpy(pictures))
        return self._tower.run("image", {name: value.numpy() for name, value in inputs.items()})

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        return self._tower.embed_texts(texts)
