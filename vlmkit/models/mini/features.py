"""What the image tower of `mini` sees at each of 7 x 7 places, before it is averaged into one vector.

image.onnx gives the vector alone. A second output is added when it is opened: serialized protobuf messages that follow
each other merge, so a few bytes behind the file's declare one more output of its graph (Protocol Buffers, "Encoding").
The file, and so the identity of `mini`, stay as they are.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.models.mini import IMAGE_BATCH, open_graph

if TYPE_CHECKING:
    import numpy as np

IMAGE = "image.onnx"
SIDE, WIDTH = 7, 1280
PLACES = SIDE * SIDE
POOLING = re.compile(rb"\x0a.(?P<name>n\d+)\x12.n\d+\x22\x11GlobalAveragePool", re.DOTALL)  # a NodeProto of ONNX


class Features:
    """The grid of features of pictures, from the `image.onnx` in a folder of `mini`."""

    def __init__(self, folder: Path, threads: int) -> None:
        path = folder / IMAGE
        try:
            found = POOLING.search(path.read_bytes())
        except OSError as error:
            raise VlmkitError(f"{path}: {error.strerror}", "install vlmkit again") from None
        if found is None:
            raise VlmkitError(f"{path} has no grid of features", "make it with vlmkit.models.mini.recipe")
        self._name = found["name"].decode()
        self._session = open_graph(path, threads, _declared(found["name"]))
        self._vectors = self._session.get_outputs()[0]

    def __call__(self, pictures: "np.ndarray") -> "np.ndarray":
        """(N, 224, 224, 3) uint8 -> (N, 49, 1280) float32, row by row; 0 to 6, as the last activation is ReLU6."""
        return self.with_vectors(pictures)[0]

    def with_vectors(self, pictures: "np.ndarray", mirrored: bool = False) -> "tuple[np.ndarray, np.ndarray]":
        """The same, and the vectors that `mini` embeds the pictures as, (N, D) float32.

        With `mirrored` both are the means over a picture and its mirror image, whose places are turned back.
        """
        import numpy as np

        if mirrored:
            here, vector = self.with_vectors(pictures)
            there, other = self.with_vectors(np.ascontiguousarray(pictures[:, :, ::-1]))
            back = there.reshape(-1, SIDE, SIDE, WIDTH)[:, :, ::-1].reshape(here.shape)
            return (here + back) / 2, (vector + other) / 2
        outputs = [self._name, self._vectors.name]
        grids = [np.zeros((0, WIDTH, SIDE, SIDE), np.float32)]
        vectors = [np.zeros((0, self._vectors.shape[1]), np.float32)]
        for i in range(0, len(pictures), IMAGE_BATCH):
            grid, vector = self._session.run(outputs, {"pictures": pictures[i : i + IMAGE_BATCH]})
            grids.append(grid)  # (n, 1280, 7, 7)
            vectors.append(vector)
        rows = np.concatenate(grids).reshape(-1, WIDTH, PLACES).transpose(0, 2, 1)
        return np.ascontiguousarray(rows), np.concatenate(vectors)


def _declared(name: bytes) -> bytes:
    """A ModelProto that holds nothing but the output `name`, (N, 1280, 7, 7) float32."""
    sizes = [_field(2, b"N"), *(b"\x08" + _varint(size) for size in (WIDTH, SIDE, SIDE))]  # Dimension
    shape = b"".join(_field(1, size) for size in sizes)  # TensorShapeProto
    tensor = _field(1, b"\x08\x01" + _field(2, shape))  # TypeProto, of float
    return _field(7, _field(12, _field(1, name) + _field(2, tensor)))  # ModelProto.graph.output


def _field(number: int, data: bytes) -> bytes:
    """A protobuf field that holds bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
