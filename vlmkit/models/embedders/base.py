"""The base class of dual encoders of PyTorch: device, precision, batches that fit into memory."""

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.models.batching import CPU, CUDA_FIRST, CUDA_LARGEST, BatchSize
from vlmkit.models.embedders.preprocessing import PictureSteps
from vlmkit.models.types import Embedder, Hardware

if TYPE_CHECKING:
    import numpy as np
    import tokenizers
    import torch

    Inputs = dict[str, torch.Tensor]


class FastTokenizer(NamedTuple):
    """The same tokens without PyTorch: how texts are cleaned first (see `clean_text`), and the tokenizer."""

    clean: str
    tokenizer: "tokenizers.Tokenizer"


class TorchEmbedder(Embedder):
    """A dual encoder of PyTorch. A subclass sets `model`, `dim`, `size` and `logit_scale`.

    In bf16 and fp16 the weights of matrix products and convolutions have that type, and autocast chooses the type of
    each operation.
    """

    precisions = ("fp32", "bf16", "fp16", "int8")  # int8 is made of the exported model, see onnx.py
    model: "torch.nn.Module"
    picture_steps: PictureSteps | None = None  # what `preprocess` does, where that can be done without PyTorch

    def __init__(self, hardware: Hardware) -> None:
        import torch

        self._torch = torch
        self.device = torch_device(hardware.device)
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(hardware.precision or "fp32")
        self.batch = BatchSize(CUDA_FIRST, CUDA_LARGEST) if self.device == "cuda" else BatchSize(CPU)

    @abstractmethod
    def tokens(self, texts: list[str]) -> "Inputs":
        """What `encode_texts` takes, each N x T."""

    def fast_tokenizer(self) -> FastTokenizer | None:
        """The same tokenizer without PyTorch, if there is one."""
        return None

    @property
    def text_tokenizer(self) -> "tokenizers.Tokenizer | None":
        return self._fast_tokenizer.tokenizer if self._fast_tokenizer else None

    @cached_property
    def _fast_tokenizer(self) -> FastTokenizer | None:
        return self.fast_tokenizer()

    def picture_inputs(self, pictures: "torch.Tensor") -> "Inputs":
        """What `encode_images` takes, from a stack of what `preprocess` makes."""
        return {"pixel_values": pictures}

    def only_what_vectors_need(self) -> contextlib.AbstractContextManager[None]:
        """Inside, `encode_images` of an exported model leaves out what does not change its vectors."""
        return contextlib.nullcontext()

    @abstractmethod
    def encode_images(self, inputs: "Inputs") -> "torch.Tensor":
        """N x D, of any length."""

    @abstractmethod
    def encode_texts(self, inputs: "Inputs") -> "torch.Tensor":
        """N x D, of any length."""

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        start = time.perf_counter()
        vectors = self._embed(self.encode_images, self.picture_inputs(self._torch.from_numpy(pictures)))
        self.batch.learn(len(pictures), time.perf_counter() - start)
        return vectors

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        return self._embed(self.encode_texts, self.tokens(texts))

    def place(self, model: "torch.nn.Module") -> "torch.nn.Module":
        """`model` on the device, in its precision, ready to embed."""
        torch = self._torch
        if self._dtype is not None:
            for part in model.modules():
                if isinstance(part, torch.nn.Linear | torch.nn.Conv2d | torch.nn.MultiheadAttention):
                    part.to(self._dtype)
        return model.to(self.device).eval()

    def _embed(self, encode: "Callable[[Inputs], torch.Tensor]", inputs: "Inputs") -> "np.ndarray":
        """N x D float32 unit vectors. A batch that does not fit into memory is halved."""
        torch = self._torch
        count = len(next(iter(inputs.values())))
        autocast = torch.autocast(self.device, self._dtype) if self._dtype else contextlib.nullcontext()
        with contextlib.suppress(torch.OutOfMemoryError), torch.inference_mode(), autocast:
            vectors = encode({name: self._on_device(value) for name, value in inputs.items()})
            return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
        if count < 2:
            raise VlmkitError(f"one input alone does not fit into the memory of {self.device}", "use --device cpu")
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self.batch.too_large(count)
        import numpy as np

        first = {name: value[: count // 2] for name, value in inputs.items()}
        second = {name: value[count // 2 :] for name, value in inputs.items()}
        return np.concatenate([self._embed(encode, first), self._embed(encode, second)])

    def _on_device(self, value: "torch.Tensor") -> "torch.Tensor":
        return value.pin_memory().to(self.device, non_blocking=True) if self.device == "cuda" else value.to(self.device)


def torch_device(wanted: str) -> str:
    """The torch device for `--device`. Raises VlmkitError where a device that was asked for is missing."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, found in available.items() if found)
    if not available[wanted]:
        raise VlmkitError(f"no {wanted} device was found", "use --device cpu or leave it out")
    return wanted


def silence_libraries() -> None:
    """Silence the libraries' reports and progress bars: standard error is for vlmkit's own lines."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.CRITICAL)  # open_clip logs to the root
