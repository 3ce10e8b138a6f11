"""The language side of `mini`: tokens in, logits of the next one out, with a cache of what came before."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.models.mini import open_graph
from vlmkit.models.mini.features import PLACES, WIDTH

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

PLACE = -1  # among token ids: a place of a picture
PADDING = -2
HIDDEN = -1e9  # added to the score of a token that must not be seen


class Past(NamedTuple):
    """What N rows of tokens left behind: keys and values by layer, and which of the T places are no padding (N, T)."""

    cache: "list[onnxruntime.OrtValue]"
    real: "np.ndarray"


class Decoder:
    """talk.onnx (see talk_graph.py)."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = open_graph(path, threads)
        self._cached = {node.name: node.shape for node in self._session.get_inputs()[5:]}
        self._outputs = [node.name for node in self._session.get_outputs()]

    def __call__(
        self,
        ids: "np.ndarray",
        past: Past | None = None,
        rows: "np.ndarray | None" = None,
        grid: "np.ndarray | None" = None,
    ) -> "tuple[np.ndarray, Past]":
        """Logits (N, V) of what follows `ids` (N, L), and the cache with them.

        Row i of `ids` (padding on the left) follows row `rows[i]` of `past`, or row i without `rows`. The places of
        `grid` (M, 49, 1280) stand where `ids` has PLACE, in order.
        """
        import numpy as np
        from onnxruntime import OrtValue

        count, length = ids.shape
        past = past or self._nothing(count)
        rows = np.arange(count) if rows is None else rows
        real = np.concatenate([past.real[rows], ids != PADDING], axis=1)  # (N, S)
        positions = np.maximum(real.cumsum(1)[:, -length:] - 1, 0)
        seen = real[:, None, :] & np.tri(length, real.shape[1], real.shape[1] - length, dtype=bool)  # (N, L, S)
        inputs = {
            "ids": np.where(ids == PADDING, 0, ids).astype(np.int64),
            "positions": positions.astype(np.int64),
            "mask": np.where(seen, np.float32(0), np.float32(HIDDEN)),
            "rows": rows.astype(np.int64),
            "grid": np.zeros((0, PLACES, WIDTH), np.float32) if grid is None else grid,
        }
        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        values |= dict(zip(self._cached, past.cache, strict=True))
        logits, *cache = self._session.run_with_ort_values(self._outputs, values)
        return logits.numpy(), Past(cache, real)

    def _nothing(self, count: int) -> Past:
        import numpy as np
        from onnxruntime import OrtValue

        free = {"P": count, "T": 0}
        shapes = [[free.get(size, size) for size in shape] for shape in self._cached.values()]
        empty = [OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for shape in shapes]
        return Past(empty, np.zeros((count, 0), bool))
