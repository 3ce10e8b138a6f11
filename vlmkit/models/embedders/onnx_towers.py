"""The exported towers of a PyTorch model in the cache folder, run by ONNX Runtime on the CPU, without PyTorch."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vlmkit.io.files import user_folder
from vlmkit.models.batching import CPU, BatchSize
from vlmkit.models.embedders.preprocessing import PictureSteps
from vlmkit.models.embedders.tokenizers import clean_text
from vlmkit.models.fingerprint import fingerprint as fingerprint_of
from vlmkit.models.types import Hardware

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

FORMAT = 2  # of the folder
CARD = "tower.json"
TEXT_BATCH = 64
PICTURES_A_CORE = 8  # in one call; more is no faster
PIXELS = "pixel_values"  # what the image tower takes where it has `picture_steps`
SCHEME = "int8: matrix products, weights by channel, activations as they come, 1"
TOKEN_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class ExportError(Exception):
    """A tower of this model cannot be exported, or gives other vectors; the message says why."""


class OnnxTowers:
    """The exported text or image tower of a model, in int8 both. `card` is what `onnx_export` wrote about them."""

    device = "cpu"

    def __init__(self, folder: Path, card: dict[str, Any], threads: int | None) -> None:
        self.dim, self.size, self.logit_scale = card["dim"], card["size"], card["logit_scale"]
        self._folder, self._card, self._threads = folder, card, threads_of(threads)
        self.picture_steps = PictureSteps(**card["picture"]) if card.get("picture") else None
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

        encodings = self.text_tokenizer.encode_batch([clean_text(text, self._card["clean"]) for text in texts])
        names = self._card["inputs"]["text"]
        return {name: np.array([getattr(one, TOKEN_FIELDS[name]) for one in encodings], np.int64) for name in names}

    @cached_property
    def text_tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    def embed_images(self, inputs: "dict[str, np.ndarray]") -> "np.ndarray":
        """What the image tower takes, of N pictures -> N x D float32, L2-normalised.

        A core a call: cores that share one wait for each other at every layer.
        """
        import numpy as np

        count = len(next(iter(inputs.values())))
        size = min(PICTURES_A_CORE, -(-count // self._threads))
        parts = [{name: value[i : i + size] for name, value in inputs.items()} for i in range(0, count, size)]
        self._open("image", 1)
        with ThreadPoolExecutor(self._threads) as pool:
            return np.concatenate(list(pool.map(lambda part: self.run("image", part), parts)))

    def run(self, side: str, inputs: "dict[str, np.ndarray]") -> "np.ndarray":
        """N x D of the tower `side`, text or image."""
        return self._open(side, self._threads).run(None, inputs)[0]

    def _open(self, side: str, threads: int) -> "onnxruntime.InferenceSession":
        if side not in self._sessions:
            self._sessions[side] = _session(self._folder / f"{side}.onnx", threads)
        return self._sessions[side]


def _session(path: Path, threads: int) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def cpu_batch(hardware: Hardware) -> BatchSize:
    """How many pictures keep all cores busy."""
    return BatchSize(max(CPU, PICTURES_A_CORE * threads_of(hardware.threads)))


def threads_of(threads: int | None) -> int:
    """`threads`, or one a core."""
    return threads or len(os.sched_getaffinity(0))


def image_key(fingerprint: str) -> str:
    """The key of the image tower in fp32 of the model with `fingerprint`; that of its text tower is `fingerprint`."""
    return f"{fingerprint}-image"


def towers_folder(fingerprint: str) -> Path:
    """The place in the cache for the towers of the model with `fingerprint`."""
    return user_folder("cache") / "towers" / fingerprint


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
    return fingerprint_of([path for path in sorted(folder.iterdir()) if path.name != CARD])


def int8_fingerprint(fingerprint: str) -> str:
    """The fingerprint of the int8 form of the model with `fingerprint`: its vectors are others."""
    return hashlib.sha256(f"{fingerprint} {SCHEME}".encode()).hexdigest()[:12]
