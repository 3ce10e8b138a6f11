"""A small writer of ONNX graphs: nodes by name, weights kept in int8 with one scale a row or as float16."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20

Shape = list[str | int]


class Graph:
    """Collects nodes and weights; every method that adds a node returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """One node with one output."""
        out = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def split(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """One node with several outputs."""
        outs = [f"n{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, **attributes))
        return outs

    def const(self, value: np.ndarray) -> str:
        """A weight or constant as it is."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def floats(self, value: np.ndarray) -> str:
        """A small weight kept in float32."""
        return self.const(np.asarray(value, np.float32))

    def ints(self, *values: int) -> str:
        """A one-dimensional int64 constant."""
        return self.const(np.asarray(values, np.int64))

    def half(self, value: np.ndarray) -> str:
        """A weight kept in float16, cast to float32 when the model is loaded."""
        return self.add("Cast", self.const(np.asarray(value, np.float16)), to=TensorProto.FLOAT)

    def int8(self, value: np.ndarray, axis: int) -> str:
        """A weight kept in int8, symmetric, a scale for each index of `axis`, dequantised when the model is loaded."""
        codes, scales = quantise(value, axis)
        return self.add("DequantizeLinear", self.const(codes), self.floats(scales), axis=axis)

    def rows4(self, table: np.ndarray, which: str, block: int) -> str:
        """Rows `which` (N, L) of a (V, W) table kept in 4 bits -> (N, L, W).

        They are picked first and dequantised then: the whole table never stands in memory as floats.
        """
        codes, scales = pack4(table, block)
        picked = self.add("Gather", self.const(codes), which)  # (N, L, W / 2)
        low = self.add("BitwiseAnd", picked, self.const(np.array(15, np.uint8)))
        high = self.add("BitShift", picked, self.const(np.array(4, np.uint8)), direction="RIGHT")
        both = self.add("Cast", self.add("Concat", low, high, axis=2), to=TensorProto.FLOAT)
        both = self.add("Sub", both, self.floats(np.array(8)))
        both = self.add("Reshape", both, self.ints(0, 0, scales.shape[1], block))
        size = self.add("Cast", self.add("Gather", self.const(scales[:, :, None]), which), to=TensorProto.FLOAT)
        return self.add("Reshape", self.add("Mul", both, size), self.ints(0, 0, table.shape[1]))

    def normalise(self, name: str) -> str:
        """Rows of (N, D) scaled to length 1."""
        return self.add("LpNormalization", name, axis=1, p=2)

    def model(self, inputs: dict[str, tuple[int, Shape]], outputs: dict[str, Shape]) -> bytes:
        """The serialized model: `inputs` maps a name to (element type, shape); the outputs are float32."""
        graph = helper.make_graph(
            self.nodes,
            "mini",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(model)
        return model.SerializeToString(deterministic=True)


def pack4(table: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(V, W / 2) uint8 and (V, W / block) float16 scales of a (V, W) table in 4 bits, one scale for `block` numbers.

    A code c in 0..15 stands for (c - 8) x scale; column i is the low half of byte i, column i + W / 2 the high half.
    Of several scales, each block takes the one with the least squared error.
    """
    count, width = table.shape
    blocks = table.reshape(count, width // block, block)
    most = np.abs(blocks).max(2, keepdims=True)
    error = np.full(most.shape, np.inf)
    codes, scales = np.zeros(blocks.shape, np.int8), np.ones(most.shape, np.float16)
    for share in np.linspace(0.6, 1, 9):
        tried = np.where(most > 0, most * share / 7, 1).astype(np.float16)
        rounded = np.clip(np.rint(blocks / tried.astype(np.float32)), -8, 7)
        off = ((rounded * tried.astype(np.float32) - blocks) ** 2).sum(2, keepdims=True)
        better = off < error
        error, scales = np.where(better, off, error), np.where(better, tried, scales)
        codes = np.where(better, rounded, codes).astype(np.int8)
    flat = (codes.reshape(count, width) + 8).astype(np.uint8)
    return flat[:, : width // 2] | (flat[:, width // 2 :] << 4), scales[:, :, 0]


def quantise(value: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(int8 codes, float32 scales) of `value`: symmetric, one scale for each index of `axis`."""
    others = tuple(i for i in range(value.ndim) if i != axis)
    scales = np.abs(value).max(axis=others) / 127
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(value.ndim)]
    codes = np.clip(np.rint(value / scales.reshape(shape)), -127, 127).astype(np.int8)
    return codes, scales
