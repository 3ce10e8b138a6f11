"""The model that ships with vlmkit: 224-pixel pictures and English texts as vectors, by ONNX Runtime alone.

How it was made and what it is good for stands in MODEL_CARD.md; recipe.py makes it again.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.models.batching import BatchSize
from vlmkit.models.registry import Hardware
from vlmkit.models.resolve import MINI_FOLDER

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    import tokenizers
    from PIL.Image import Image

SIZE = 224  # pixels
CONTEXT = 64  # tokens, first and last mark included; longer texts are cut
IMAGE_BATCH = 16  # pictures in one call of ONNX Runtime: more is no faster and takes memory
TEXT_BATCH = 64  # texts
CONFIG = "mini.json"
FILES = ("image.onnx", "text.onnx", "tokenizer.json")  # what the vectors depend on


class Mini:
    """Image and text encoder. Each side is opened when it is first used, so a text query never loads the image side."""

    device = "cpu"
    size = SIZE

    def __init__(self, folder: str = "", hardware: Hardware = Hardware()) -> None:  # noqa: B008 (frozen)
        import orjson

        if hardware.device not in ("auto", "cpu"):
            raise VlmkitError(f"mini runs on the CPU, not on {hardware.device}", "leave --device out")
        self.folder = Path(folder) if folder else MINI_FOLDER
        self.batch = BatchSize()
        self.threads = hardware.threads or len(os.sched_getaffinity(0))
        try:
            config = orjson.loads((self.folder / CONFIG).read_bytes())
            self.dim = int(config["dim"])
            self.logit_scale = float(config["logit_scale"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VlmkitError(f"{self.folder}: not a whole mini model ({error})", "install vlmkit again") from None
        self._image: onnxruntime.InferenceSession | None = None
        self._text: onnxruntime.InferenceSession | None = None
        self._tokenizer: tokenizers.Tokenizer | None = None

    def preprocess(self, image: "Image") -> "np.ndarray":
        return preprocess(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        """(N, 224, 224, 3) uint8 -> (N, D) float32, L2-normalised."""
        import numpy as np

        if self._image is None:
            self._image = self._open("image.onnx")
        rows = [
            self._image.run(None, {"pictures": pictures[i : i + IMAGE_BATCH]})[0]
            for i in range(0, len(pictures), IMAGE_BATCH)
        ]
        return np.concatenate(rows) if rows else np.zeros((0, self.dim), np.float32)

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        """N texts -> (N, D) float32, L2-normalised. Texts of equal length run together: no text sees padding."""
        import numpy as np

        if self._text is None:
            self._text = self._open("text.onnx")
            self._tokenizer = self._open_tokenizer()
        assert self._tokenizer is not None
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        out = np.zeros((len(texts), self.dim), np.float32)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        while order:
            length = len(tokens[order[0]])
            some = [i for i in order[:TEXT_BATCH] if len(tokens[i]) == length]
            ids = np.array([tokens[i] for i in some], np.int64)  # (n, length)
            # One row alone takes another path through matrix products, and its last bits differ: give it company.
            twice = ids if len(some) > 1 else ids.repeat(2, 0)
            out[some] = self._text.run(None, {"ids": twice})[0][: len(some)]
            order = order[len(some) :]
        return out

    def _open_tokenizer(self) -> "tokenizers.Tokenizer":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.enable_truncation(CONTEXT)
        return tokenizer

    def _open(self, name: str) -> "onnxruntime.InferenceSession":
        return open_graph(self.folder / name, self.threads)


def preprocess(image: "Image") -> "np.ndarray":
    """An RGB picture -> (224, 224, 3) uint8: shortest side to 224 pixels, then the middle."""
    import numpy as np
    from PIL.Image import Resampling

    if image.size != (SIZE, SIZE):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((SIZE, SIZE), Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return np.asarray(image, np.uint8)


def open_graph(path: Path, threads: int, further: bytes = b"") -> "onnxruntime.InferenceSession":
    """The ONNX graph at `path`; `further` is what its serialized form is to be merged with. Raises VlmkitError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Weights are kept in int8 and turned into floats once, here; by default each call would do it again.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        model = path.read_bytes() + further if further else path
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common base
        raise VlmkitError(f"{path}: {error}", "install vlmkit again") from None
