"""The two graphs of mini's chat model, by ONNX Runtime: the language model, and the grid of features of a picture."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.models.embedders.mini import open_graph, run_batches

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

IMAGE = "image.onnx"
SIDE, WIDTH = 7, 1280  # of the grid of features
PLACES = SIDE * SIDE
PLACE = -1  # among token ids: a place of a picture
PADDING = -2
MASKED = -1e9  # added to the score of a token that must not be attended to
POOLING = re.compile(rb"\x0a.(?P<name>n\d+)\x12.n\d+\x22\x11GlobalAveragePool", re.DOTALL)  # a NodeProto of ONNX


class Cache(NamedTuple):
    """Keys and values by layer of N rows of T tokens, and which of the tokens are not padding (N, T)."""

    values: "list[onnxruntime.OrtValue]"
    real: "np.ndarray"


class Decoder:
    """The language model, talk.onnx (see vlmkit.recipes.mini.export_chat): tokens in, logits of the next one out.

    On one core, so that several calls run side by side.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_graph(path, 1)
        self._cached = {node.name: node.shape for node in self._session.get_inputs()[5:]}
        self._outputs = [node.name for node in self._session.get_outputs()]

    def __call__(
        self,
        ids: "np.ndarray",
        cache: Cache | None = None,
        rows: "np.ndarray | None" = None,
        grid: "np.ndarray | None" = None,
    ) -> "tuple[np.ndarray, Cache]":
        """Logits (N, V) of what follows `ids` (N, L), and the cache with them.

        Row i of `ids` (padding on the left) follows row `rows[i]` of `cache`, or row i without `rows`. The places of
        `grid` (M, 49, 1280) stand where `ids` has PLACE, in order.
        """
        import numpy as np
        from onnxruntime import OrtValue

        count, length = ids.shape
        cache = cache or self._empty_cache(count)
        rows = np.arange(count) if rows is None else rows
        real = np.concatenate([cache.real[rows], ids != PADDING], axis=1)  # (N, S)
        positions = np.maximum(real.cumsum(1)[:, -length:] - 1, 0)
        attended = real[:, None, :] & np.tri(length, real.shape[1], real.shape[1] - length, dtype=bool)  # (N, L, S)
        inputs = {
            "ids": np.where(ids == PADDING, 0, ids).astype(np.int64),
            "positions": positions.astype(np.int64),
            "mask": np.where(attended, np.float32(0), np.float32(MASKED)),
            "rows": rows.astype(np.int64),
            "grid": np.zeros((0, PLACES, WIDTH), np.float32) if grid is None else grid,
        }
        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        values |= dict(zip(self._cached, cache.values, strict=True))
        logits, *new = self._session.run_with_ort_values(self._outputs, values)
        return logits.numpy(), Cache(new, real)

    def _empty_cache(self, count: int) -> Cache:
        import numpy as np
        from onnxruntime import OrtValue

        sizes = {"P": count, "T": 0}
        shapes = [[sizes.get(size, size) for size in shape] for shape in self._cached.values()]
        values = [OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for shape in shapes]
        return Cache(values, np.zeros((count, 0), bool))


class Features:
    """The grid of features of pictures, from the `image.onnx` in a folder of `mini`.

    The graph gives the vector of a picture alone. The grid before its pooling becomes a second output when the graph is
    opened: serialized protobuf messages that follow each other merge (Protocol Buffers, "Encoding"), so a few bytes
    behind those of the file declare it. The file, and so the identity of `mini`, stay as they are.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        path = folder / IMAGE
        try:
            found = POOLING.search(path.read_bytes())
        except OSError as error:
            raise VlmkitError(f"{path}: {error.strerror}", "reinstall vlmkit") from None
        if found is None:
            raise VlmkitError(f"{path} has no grid of features", "make it with vlmkit.recipes.mini.train_embedder")
        self._name = found["name"].decode()
        self._session = open_graph(path, 1, _output(found["name"]))
        self._threads = threads
        self._vectors = self._session.get_outputs()[0]

    def __call__(self, pictures: "np.ndarray") -> "np.ndarray":
        """(N, 224, 224, 3) uint8 -> (N, 49, 1280) float32, row by row; 0 to 6, as the last activation is ReLU6."""
        return self.with_vectors(pictures)[0]

    def with_vectors(self, pictures: "np.ndarray", flip_augment: bool = False) -> "tuple[np.ndarray, np.ndarray]":
        """The same, and the vectors that `mini` embeds the pictures as, (N, D) float32.

        With `flip_augment` both are the means over a picture and its mirror image, whose grid is flipped back.
        """
        import numpy as np

        if flip_augment:
            both, each = self.with_vectors(np.concatenate([pictures, pictures[:, :, ::-1]]))
            (grid, flipped), (vectors, others) = np.split(both, 2), np.split(each, 2)
            back = flipped.reshape(-1, SIDE, SIDE, WIDTH)[:, :, ::-1].reshape(grid.shape)
            return (grid + back) / 2, (vectors + others) / 2
        outputs = [self._name, self._vectors.name]
        found = run_batches(self._session, outputs, pictures, self._threads)  # (n, 1280, 7, 7), (n, D)
        nothing = np.zeros((0, WIDTH, SIDE, SIDE), np.float32), np.zeros((0, self._vectors.shape[1]), np.float32)
        grid, vectors = (np.concatenate(parts) for parts in zip(nothing, *found, strict=True))
        return np.ascontiguousarray(grid.reshape(-1, WIDTH, PLACES).transpose(0, 2, 1)), vectors


def _output(name: bytes) -> bytes:
    """A serialized ModelProto with nothing but the output `name`, (N, 1280, 7, 7) float32."""

    def field(number: int, data: bytes) -> bytes:  # of less than 128 bytes
        return bytes([number << 3 | 2, len(data)]) + data

    dimensions = b"\x12\x01N", b"\x08\x80\x0a", b"\x08\x07", b"\x08\x07"  # sizes as varints
    shape = b"".join(field(1, dimension) for dimension in dimensions)  # TensorShapeProto
    tensor = field(1, b"\x08\x01" + field(2, shape))  # TypeProto, of float
    return field(7, field(12, field(1, name) + field(2, tensor)))  # ModelProto.graph.output
