"""A PyTorch model whose texts go through its exported tower: a search starts without importing PyTorch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmkit.models import Embedder, Hardware
from vlmkit.models.batch import BatchSize
from vlmkit.models.tower import Tower, open_tower

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class QuickTexts:
    """The model, opened only for what its text tower cannot do. The first text has the tower written.

    `tell` hears that this takes a while, `note` why the model itself embeds the texts where it has to.
    """

    def __init__(
        self,
        digits: str,
        open_model: Callable[[Hardware], Embedder],
        hardware: Hardware,
        tell: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._digits, self._open_model, self._hardware = digits, open_model, hardware
        self._tell, self._note = tell, note
        self._whole: Embedder | None = None
        self._texts: Tower | Embedder | None = open_tower(digits, hardware.threads)

    def _model(self) -> Embedder:
        if self._whole is None:
            self._whole = self._open_model(self._hardware)
        return self._whole

    def _any(self) -> Tower | Embedder:
        return self._texts or self._model()

    @property
    def device(self) -> str:
        return self._any().device

    @property
    def dim(self) -> int:
        return self._any().dim

    @property
    def size(self) -> int:
        return self._any().size

    @property
    def logit_scale(self) -> float:
        return self._any().logit_scale

    @property
    def batch(self) -> BatchSize:
        return self._model().batch

    def preprocess(self, image: "Image") -> "np.ndarray":
        return self._model().preprocess(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        return self._model().embed_images(pictures)

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        if self._texts is None:
            self._texts = self._written()
        return self._texts.embed_texts(texts)

    def _written(self) -> Tower | Embedder:
        from vlmkit.models.export import NoTower, write_text_tower
        from vlmkit.models.torch_embedder import TorchEmbedder

        whole = self._model()
        on_cpu = whole if whole.device == "cpu" else self._open_model(Hardware("cpu"))
        assert isinstance(on_cpu, TorchEmbedder)
        self._tell("writing the model's text tower into the cache, once: the next search is quicker")
        try:
            return write_text_tower(on_cpu, self._digits)
        except (NoTower, OSError) as error:
            self._note(f"texts are embedded by PyTorch: {error}")
            return whole
