# ruff: noqa: TID253 - this file only makes the model; what runs it stands in __init__.py
"""The text side as ONNX: BERT, mean over the tokens, the trained head, the ConSE block.

All texts of one call have the same number of tokens, so there is no padding and no mask.
"""

from collections.abc import Callable, Mapping

import numpy as np

from vlmkit.models.mini.graph import Graph

Weights = Mapping[str, np.ndarray]
Store = Callable[[np.ndarray, int], str]
EPS = 1e-12  # of BERT's layer norms
BLOCK = 64  # numbers of a token's embedding that share a scale


def encoder(graph: Graph, weights: Weights, ids: str, store: Store, *, layers: int, heads: int, context: int) -> str:
    """Mean-pooled embeddings (N, W) of `ids` (N, L) int64; `weights` under transformers' names for BertModel."""
    words = weights["embeddings.word_embeddings.weight"]  # (V, W)
    width = words.shape[1]
    x = graph.rows4(words, ids, BLOCK)  # (N, L, W)
    kinds = weights["embeddings.token_type_embeddings.weight"][0]
    places = weights["embeddings.position_embeddings.weight"][:context] + kinds
    length = graph.add("Shape", ids, start=1, end=2)
    here = graph.add("Slice", graph.half(places), graph.ints(0), length, graph.ints(0))
    x = graph.add("Add", x, here)

    def norm(x: str, name: str) -> str:
        gain, bias = graph.floats(weights[f"{name}.weight"]), graph.floats(weights[f"{name}.bias"])
        return graph.add("LayerNormalization", x, gain, bias, axis=-1, epsilon=EPS)

    def dense(x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        return graph.add("Add", graph.add("MatMul", x, store(kernel.T, 1)), graph.floats(bias))

    def linear(x: str, name: str) -> str:
        return dense(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = norm(x, "embeddings.LayerNorm")
    by_head, joined = graph.ints(0, 0, heads, width // heads), graph.ints(0, 0, width)
    root = graph.floats(np.array((width // heads) ** -0.5))
    for i in range(layers):
        at = f"encoder.layer.{i}.attention"
        three = [f"{at}.self.{part}" for part in ("query", "key", "value")]
        kernel = np.concatenate([weights[f"{name}.weight"] for name in three])
        bias = np.concatenate([weights[f"{name}.bias"] for name in three])
        q, k, v = graph.split("Split", dense(x, kernel, bias), outputs=3, axis=-1, num_outputs=3)  # (N, L, W) each
        q = graph.add("Transpose", graph.add("Reshape", graph.add("Mul", q, root), by_head), perm=[0, 2, 1, 3])
        k = graph.add("Transpose", graph.add("Reshape", k, by_head), perm=[0, 2, 3, 1])
        v = graph.add("Transpose", graph.add("Reshape", v, by_head), perm=[0, 2, 1, 3])
        scores = graph.add("Softmax", graph.add("MatMul", q, k), axis=-1)  # (N, H, L, L)
        mixed = graph.add("Transpose", graph.add("MatMul", scores, v), perm=[0, 2, 1, 3])
        mixed = linear(graph.add("Reshape", mixed, joined), f"{at}.output.dense")
        x = norm(graph.add("Add", x, mixed), f"{at}.output.LayerNorm")
        inner = graph.add("Gelu", linear(x, f"encoder.layer.{i}.intermediate.dense"))
        inner = linear(inner, f"encoder.layer.{i}.output.dense")
        x = norm(graph.add("Add", x, inner), f"encoder.layer.{i}.output.LayerNorm")
    return graph.add("ReduceMean", x, graph.ints(1), keepdims=0)  # (N, W)
