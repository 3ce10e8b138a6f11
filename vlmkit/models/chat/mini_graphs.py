"""The two graphs of mini's chat model, by ONNX Runtime: the language model, and the grid of features of a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.models.embedders.graph_edit import FLOAT, INT64, EditedGraph, Tensor
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
LAST = "last"
OTHERS = {"ids", "positions", "mask", "grid", LAST}  # inputs beside the cache


class Cache(NamedTuple):
    """Keys and values by layer of N rows of T tokens, and which of the tokens are not padding (N, T)."""

    values: "list[onnxruntime.OrtValue]"
    real: "np.ndarray"

    def take(self, rows: "np.ndarray") -> "Cache":
        """Its `rows`, in their order; nothing is copied if that is what it has."""
        import numpy as np
        from onnxruntime import OrtValue

        if np.array_equal(rows, np.arange(len(self.real))):
            return self
        taken = [OrtValue.ortvalue_from_numpy(value.numpy()[rows]) for value in self.values]
        return Cache(taken, self.real[rows])


class Decoder:
    """The language model, talk.onnx (see vlmkit.recipes.mini.export_chat): tokens in, logits of what follows out.

    On one core, so that several calls run side by side.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_graph(path, 1, _edit_decoder)
        self._cached = {node.name: node.shape for node in self._session.get_inputs() if node.name not in OTHERS}
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

        count, length = ids.shape
        cache = cache or self._empty_cache(count)
        cache = cache if rows is None else cache.take(rows)
        real = np.concatenate([cache.real, ids != PADDING], axis=1)  # (N, S)
        positions = np.maximum(real.cumsum(1)[:, -length:] - 1, 0)
        attended = real[:, None, :] & np.tri(length, real.shape[1], real.shape[1] - length, dtype=bool)  # (N, L, S)
        logits, values = self.run(np.where(ids == PADDING, 0, ids), positions, attended, cache.values, grid)
        return logits, Cache(values, real)

    def run(
        self,
        ids: "np.ndarray",
        positions: "np.ndarray",
        attended: "np.ndarray",
        values: "list[onnxruntime.OrtValue]",
        grid: "np.ndarray | None" = None,
        last: int = 1,
    ) -> "tuple[np.ndarray, list[onnxruntime.OrtValue]]":
        """Logits (N x `last`, V) after each of the last tokens of `ids` (N, L), and keys and values with all of them.

        Token i of a row is at `positions` (N, L) of its text and sees the tokens `attended` (N, L, S) of the T in
        `values` and the L new ones.
        """
        import numpy as np
        from onnxruntime import OrtValue

        inputs = {
            "ids": ids.astype(np.int64),
            "positions": positions.astype(np.int64),
            "mask": np.where(attended, np.float32(0), np.float32(MASKED)),
            "grid": np.zeros((0, PLACES, WIDTH), np.float32) if grid is None else grid,
            LAST: np.arange(-last, 0),
        }
        given = {name: OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        given |= dict(zip(self._cached, values, strict=True))
        logits, *new = self._session.run_with_ort_values(self._outputs, given)
        return logits.numpy(), new

    def _empty_cache(self, count: int) -> Cache:
        import numpy as np
        from onnxruntime import OrtValue

        sizes = {"P": count, "T": 0}
        shapes = [[sizes.get(size, size) for size in shape] for shape in self._cached.values()]
        values = [OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for shape in shapes]
        return Cache(values, np.zeros((count, 0), bool))


class Branches:
    """Goes on from each row of a cache in several ways at once, such as beams, as many for each row.

    They are tokens of one row, told apart by the mask: what they share, such as a picture, stands in the cache once,
    and what was generated is appended, never reordered. What no branch follows any more stays, unseen.
    """

    def __init__(self, decoder: Decoder, cache: Cache) -> None:
        import numpy as np

        self._decoder, self._cache = decoder, cache
        self._own = np.zeros((len(cache.real), 0), bool)  # the generated tokens that each branch follows

    def __call__(self, tokens: "np.ndarray", branches: "np.ndarray") -> "np.ndarray":
        """Logits (B, V) after `tokens` (B,), each of which follows one of the `branches` (B,) of the last call.

        They are in the order of the rows that they go on from; rows of which there are none are dropped.
        """
        import numpy as np

        before = len(self._own) // len(self._cache.real)  # branches of a row
        rows = np.unique(branches // before)
        each = len(tokens) // len(rows)
        self._own = np.hstack([self._own[branches], np.tile(np.eye(each, dtype=bool), (len(rows), 1))])
        cache = self._cache.take(rows)
        attended = np.hstack([cache.real.repeat(each, 0), self._own])
        logits, values = self._decoder.run(
            tokens.reshape(-1, each),
            attended.sum(1).reshape(-1, each) - 1,
            attended.reshape(len(rows), each, -1),
            cache.values,
            last=each,
        )
        self._cache = Cache(values, cache.real)
        return logits


def _edit_decoder(graph: EditedGraph) -> None:
    """The file's graph picks rows of its cache at each call and has the logits of one token a row.

    Here `Cache.take` picks them, where they change, and LAST says of which tokens logits are wanted.
    """
    picked = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.inputs[1:] == ["rows"]}
    graph.nodes = [node for node in graph.nodes if node.outputs[0] not in picked]
    for node in graph.nodes:
        node.inputs = [picked.get(name, name) for name in node.inputs]
    graph.drop_input("rows")
    flatten = graph.node("Squeeze", "Gather")  # (N, last, W) -> (N x last, W)
    graph.maker(flatten.inputs[0]).inputs[1] = LAST
    flatten.kind, flatten.inputs = "Flatten", flatten.inputs[:1]
    flatten.set_int("axis", 2)
    graph.add_input(Tensor(LAST, INT64, ("I",)))


class Features:
    """The grid of features of pictures, from the `image.onnx` in a folder of `mini`.

    The graph gives the vector of a picture alone; opened here, the grid before its pooling becomes a second output.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._session = open_graph(folder / IMAGE, 1, _edit_features)
        self._threads = threads
        self._vectors, self._grid = self._session.get_outputs()

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
        outputs = [self._grid.name, self._vectors.name]
        found = run_batches(self._session, outputs, pictures, self._threads)  # (n, 1280, 7, 7), (n, D)
        nothing = np.zeros((0, WIDTH, SIDE, SIDE), np.float32), np.zeros((0, self._vectors.shape[1]), np.float32)
        grid, vectors = (np.concatenate(parts) for parts in zip(nothing, *found, strict=True))
        return np.ascontiguousarray(grid.reshape(-1, WIDTH, PLACES).transpose(0, 2, 1)), vectors


def _edit_features(graph: EditedGraph) -> None:
    grid = graph.node("GlobalAveragePool").inputs[0]
    graph.add_output(Tensor(grid, FLOAT, ("N", WIDTH, SIDE, SIDE)))
