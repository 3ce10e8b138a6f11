"""Towers of a PyTorch model as ONNX Runtime runs them, from a folder of the cache that export.py wrote."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vlmkit.models.identity import cache_folder, digits
from vlmkit.models.tokenize import cleaned

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

FORM = 1  # of the folder
CARD = "tower.json"
TEXTS_AT_ONCE = 64


class Tower:
    """Embeds texts, and in int8 pictures too, without PyTorch. The card tells how; see `export.write`."""

    device = "cpu"

    def __init__(self, folder: Path, card: dict[str, Any], threads: int | None) -> None:
        self.dim, self.size, self.logit_scale = card["dim"], card["size"], card["logit_scale"]
        self._folder, self._card, self._threads = folder, card, threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._tokenizer: Any = None

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        """N texts -> N x D float32, L2-normalised."""
        import numpy as np

        parts = [
            self.run("text", self.tokens(texts[i : i + TEXTS_AT_ONCE])) for i in range(0, len(texts), TEXTS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def tokens(self, texts: Sequence[str]) -> "dict[str, np.ndarray]":
        """What the text tower takes, each N x T int64."""
        import numpy as np

        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        found = self._tokenizer.encode_batch([cleaned(text, self._card["clean"]) for text in texts])
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        names = self._card["inputs"]["text"]
        return {name: np.array([getattr(one, columns[name]) for one in found], np.int64) for name in names}

    def run(self, side: str, inputs: "dict[str, np.ndarray]") -> "np.ndarray":
        """N x D of the tower `side`, text or image."""
        if side not in self._sessions:
            self._sessions[side] = session(self._folder / f"{side}.onnx", self._threads)
        return self._sessions[side].run(None, inputs)[0]


def session(path: Path, threads: int | None) -> "onnxruntime.InferenceSession":
    """An ONNX graph, opened on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def place(model: str) -> Path:
    """The folder of the towers of the model with the digits `model`."""
    return cache_folder() / "towers" / model


def open_tower(model: str, threads: int | None = None) -> Tower | None:
    """The towers of the model with the digits `model`; None where there are none, or none that are whole."""
    folder = place(model)
    try:
        card = orjson.loads((folder / CARD).read_bytes())
        if card["form"] != FORM or card["model"] != model or card["digits"] != content(folder):
            return None
        return Tower(folder, card, threads)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def content(folder: Path) -> str:
    """Digits of what the folder holds beside the card."""
    return digits([path for path in sorted(folder.iterdir()) if path.name != CARD])
