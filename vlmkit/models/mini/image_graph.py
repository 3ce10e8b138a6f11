# ruff: noqa: TID253 - this file only makes the model; what runs it stands in __init__.py
"""The image side as ONNX: EfficientNet-Lite0 with its batch norms folded, the trained head, the ConSE block."""

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from vlmkit.models.mini.graph import Graph

Weights = Mapping[str, np.ndarray]
EPS = 1e-3  # of the batch norms, as in the original TensorFlow model
# (repeats, kernel, stride, expansion, channels) of the seven stages, EfficientNet-Lite0 (Tan and others, 2020)
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def trunk(graph: Graph, weights: Weights, pictures: str, store: Callable[[np.ndarray, int], str]) -> str:
    """Pooled features (N, 1280) of `pictures` (N, 224, 224, 3) uint8; `weights` under timm's names."""
    x = graph.add("Cast", pictures, to=TensorProto.FLOAT)
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])  # (N, 3, 224, 224)
    x = graph.add("Sub", x, graph.floats(np.array(127.5)))

    def conv(x: str, name: str, norm: str, stride: int = 1, scale: float = 1.0, act: bool = True) -> str:
        kernel = weights[f"{name}.weight"].astype(np.float64) * scale
        gain = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"].astype(np.float64) + EPS)
        bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
        groups = kernel.shape[0] if kernel.shape[1] == 1 and kernel.shape[2] > 1 else 1
        kernel = (kernel * gain[:, None, None, None]).astype(np.float32)
        x = graph.add(
            "Conv", x, store(kernel, 0), graph.floats(bias),
            kernel_shape=kernel.shape[2:], strides=[stride, stride], group=groups, auto_pad="SAME_UPPER",
        )  # fmt: skip
        return graph.add("Clip", x, graph.floats(np.array(0)), graph.floats(np.array(6))) if act else x

    x = conv(x, "conv_stem", "bn1", stride=2, scale=1 / 127.5)
    before = 32
    for s, (repeats, _, stride, expand, channels) in enumerate(STAGES):
        for b in range(repeats):
            block, skip = f"blocks.{s}.{b}", x
            step = stride if b == 0 else 1
            if expand == 1:
                x = conv(x, f"{block}.conv_dw", f"{block}.bn1", step)
                x = conv(x, f"{block}.conv_pw", f"{block}.bn2", act=False)
            else:
                x = conv(x, f"{block}.conv_pw", f"{block}.bn1")
                x = conv(x, f"{block}.conv_dw", f"{block}.bn2", step)
                x = conv(x, f"{block}.conv_pwl", f"{block}.bn3", act=False)
            if step == 1 and channels == before:
                x = graph.add("Add", x, skip)
            before = channels
    x = conv(x, "conv_head", "bn2")
    return graph.add("Flatten", graph.add("GlobalAveragePool", x))  # (N, 1280)
