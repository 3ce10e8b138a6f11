# ruff: noqa: TID253 - this file only makes the model; what runs it stands in __init__.py
"""The two blocks of a vector: what training taught, and ConSE, what the backbone's own class names teach.

ConSE (Norouzi and others, 2013): a picture is the probability-weighted mean of the text embeddings of its most probable
ImageNet classes. A text is its own embedding, in the same space.
"""

from dataclasses import dataclass

import numpy as np

from vlmkit.models.mini.graph import Graph

TOP = 10  # classes


@dataclass(frozen=True, slots=True)
class Names:
    """The space of the class names."""

    mean: np.ndarray  # (W,) of the class names' text embeddings
    basis: np.ndarray  # (W, C) orthonormal, the directions in which they differ most
    classes: np.ndarray  # (1000, C) the class names in that basis
    weight: float  # share of this block in the squared length of a vector

    @classmethod
    def of(cls, embeddings: np.ndarray, dim: int, weight: float) -> "Names":
        """From the text embeddings (1000, W) of the class names, kept to their first `dim` principal directions."""
        mean = embeddings.mean(0)
        basis = np.linalg.svd(embeddings - mean, full_matrices=False)[2][:dim].T
        return cls(mean, basis, (embeddings - mean) @ basis, weight)


def _joined(graph: Graph, trained: str, named: str, weight: float) -> str:
    first = graph.add("Mul", graph.normalise(trained), graph.floats(np.array((1 - weight) ** 0.5)))
    second = graph.add("Mul", graph.normalise(named), graph.floats(np.array(weight**0.5)))
    return graph.add("Concat", first, second, out="embedding", axis=1)


def image_vector(graph: Graph, pooled: str, trained: str, kernel: str, bias: np.ndarray, names: Names) -> str:
    """(N, D + C) from pooled features (N, F), the trained block (N, D), the classifier `kernel` (F, 1000), `bias`."""
    logits = graph.add("Add", graph.add("MatMul", pooled, kernel), graph.floats(bias))
    most, which = graph.split(
        "TopK", graph.add("Softmax", logits, axis=1), graph.ints(TOP), outputs=2, axis=1, largest=1, sorted=1
    )
    some = graph.add("Gather", graph.half(names.classes), which)  # (N, TOP, C)
    shares = graph.add("Unsqueeze", most, graph.ints(1))  # (N, 1, TOP)
    mean = graph.add("Squeeze", graph.add("MatMul", shares, some), graph.ints(1))  # (N, C)
    return _joined(graph, trained, mean, names.weight)


def text_vector(graph: Graph, pooled: str, trained: str, names: Names) -> str:
    """(N, D + C) from mean-pooled text embeddings (N, W) and the trained block (N, D)."""
    centred = graph.add("Sub", pooled, graph.floats(names.mean))
    return _joined(graph, trained, graph.add("MatMul", centred, graph.half(names.basis)), names.weight)
