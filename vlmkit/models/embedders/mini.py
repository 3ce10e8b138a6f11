"""The model that ships with vlmkit: 224-pixel pictures and English texts as vectors, by ONNX Runtime alone.

vlmkit/models/mini/MODEL_CARD.md says how it was made and what it is good for; vlmkit.recipes.mini makes it again.
"""

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.models.resolve import MINI_FOLDER, Checkpoint
from vlmkit.models.types import Embedder, Hardware

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime
    import tokenizers
    from PIL.Image import Image

    from vlmkit.models.embedders.graph_edit import EditedGraph
    from vlmkit.models.embedders.numpy_graph import NumpyGraph

SIZE = 224  # pixels
CONTEXT = 64  # tokens, with the start and end token; longer texts are cut
IMAGE_BATCH = 4  # pictures in one call of ONNX Runtime, which has one core: more is no faster and takes memory
TEXT_BATCH = 64  # texts
QUICK_TEXTS = 2  # in one call
CONFIG = "mini.json"


def open_mini(checkpoint: Checkpoint, hardware: Hardware) -> "Mini":
    return Mini(checkpoint.folder, hardware)


class Mini(Embedder):
    """Image and text encoder. Each side is opened when it is first used, so a text query never loads the image side."""

    size = SIZE

    def __init__(self, folder: str | Path = MINI_FOLDER, hardware: Hardware = Hardware()) -> None:  # noqa: B008 (frozen)
        import orjson

        self.folder = Path(folder)
        self.threads = mini_threads(hardware)
        try:
            config = orjson.loads((self.folder / CONFIG).read_bytes())
            self.dim = int(config["dim"])
            self.logit_scale = float(config["logit_scale"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"{self.folder} is not a complete mini model ({error})"
            raise VlmkitError(what, "reinstall vlmkit") from None

    @cached_property
    def _image(self) -> "onnxruntime.InferenceSession":
        return open_graph(self.folder / "image.onnx", 1)

    @cached_property
    def _text(self) -> "onnxruntime.InferenceSession":
        return open_graph(self.folder / "text.onnx", self.threads)

    @cached_property
    def _quick_text(self) -> "NumpyGraph":
        """The same graph, without ONNX Runtime: a text is embedded before that would be imported."""
        from vlmkit.models.embedders.numpy_graph import NumpyGraph

        path = self.folder / "text.onnx"
        try:
            return NumpyGraph(path)
        except (OSError, ValueError) as error:
            raise VlmkitError(f"{path}: {error}", "reinstall vlmkit") from None

    @cached_property
    def _tokenizer(self) -> "tokenizers.Tokenizer":
        tokenizer = open_tokenizer(self.folder / "tokenizer.json")
        tokenizer.enable_truncation(CONTEXT)
        return tokenizer

    @property
    def text_tokenizer(self) -> "tokenizers.Tokenizer":
        return self._tokenizer

    def preprocess(self, image: "Image") -> "np.ndarray":
        return preprocess(image)

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        """(N, 224, 224, 3) uint8 -> (N, D) float32, L2-normalised."""
        import numpy as np

        nothing = np.zeros((0, self.dim), np.float32)
        return np.concatenate(
            [nothing, *(found for (found,) in run_batches(self._image, None, pictures, self.threads))]
        )

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        """N texts -> (N, D) float32, L2-normalised. Texts of equal length run together: no text sees padding."""
        import numpy as np

        is_quick = self.starts_quickly and len(texts) <= QUICK_TEXTS
        session: Any = self._quick_text if is_quick else self._text
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        vectors = np.zeros((len(texts), self.dim), np.float32)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        while order:
            length = len(tokens[order[0]])
            batch = [i for i in order[:TEXT_BATCH] if len(tokens[i]) == length]
            ids = np.array([tokens[i] for i in batch], np.int64)  # (n, length)
            # A single row takes another path through matrix products, and its last bits differ: it is doubled.
            ids = ids if len(batch) > 1 else ids.repeat(2, 0)
            vectors[batch] = session.run(None, {"ids": ids})[0][: len(batch)]
            order = order[len(batch) :]
        return vectors


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


def run_batches(
    session: "onnxruntime.InferenceSession", outputs: list[str] | None, pictures: "np.ndarray", threads: int
) -> "Iterator[list[np.ndarray]]":
    """The outputs of an image graph that has one thread, for pictures (N, 224, 224, 3) a batch at a time, in order.

    A core a batch: cores that share one wait for each other at every layer. The numbers are the same.
    """
    from concurrent.futures import ThreadPoolExecutor

    batches = [pictures[i : i + IMAGE_BATCH] for i in range(0, len(pictures), IMAGE_BATCH)]
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda batch: session.run(outputs, {"pictures": batch}), batches)


def mini_threads(hardware: Hardware) -> int:
    """How many threads mini uses. Raises VlmkitError for another device than the CPU."""
    if hardware.device not in ("auto", "cpu"):
        raise VlmkitError(f"mini runs on the CPU, not on {hardware.device}", "leave --device out")
    return hardware.threads or len(os.sched_getaffinity(0))


def open_tokenizer(path: Path) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no other class
        raise VlmkitError(f"{path}: {error}", "reinstall vlmkit") from None


def open_graph(
    path: Path, threads: int, edit: "Callable[[EditedGraph], None] | None" = None
) -> "onnxruntime.InferenceSession":
    """The ONNX graph at `path`, changed by `edit`. Raises VlmkitError."""
    import onnxruntime

    from vlmkit.models.embedders.graph_edit import edited

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Weights are kept in int8 and turned into floats once, here; by default each call would do it again.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        model = edited(path.read_bytes(), edit) if edit else path
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common base
        why = error.strerror if isinstance(error, OSError) else error
        raise VlmkitError(f"{path}: {why}", "reinstall vlmkit") from None
