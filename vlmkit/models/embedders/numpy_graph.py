"""ONNX graphs of mini's text side by NumPy alone: for a text or two ONNX Runtime takes longer to open than to run.

Only what `vlmkit.recipes.mini.onnx_graph` writes is read: the operators below, and weights in `raw_data`.
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.models.embedders.protobuf import read_fields, read_varint

TYPES = {1: "<f4", 2: "u1", 3: "i1", 7: "<i8", 10: "<f2"}  # of TensorProto.DataType
ROWS = 16  # of a matrix that are multiplied at a time
UNTHREADED = 1 << 18  # multiplications for which OpenBLAS takes one thread
ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
Attributes = dict[str, Any]


class NumpyGraph:
    """The graph in the file at `path`, which has one output. Raises OSError, and ValueError where it is damaged."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            graph = _grouped(_grouped(data)[7][0])
            self._weights = dict(map(_tensor, graph[5]))
            self._nodes = [_node(node) for node in graph[1]]
        except (IndexError, KeyError, TypeError, struct.error) as error:
            raise ValueError(f"not a graph of mini ({error!r})") from None

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The output for `inputs` by name; called as InferenceSession.run is."""
        values: dict[str, Any] = self._weights | inputs
        for operator, names, outputs, attributes in self._nodes:
            found = operator(*(values[name] for name in names), **attributes)
            values |= zip(outputs, found if len(outputs) > 1 else [found], strict=True)
        return [values[outputs[0]]]


def _grouped(data: memoryview) -> dict[int, list[Any]]:
    fields: dict[int, list[Any]] = {}
    for number, value in read_fields(data):
        fields.setdefault(number, []).append(value)
    return fields


def _packed(values: list[Any]) -> list[int]:
    """Repeated integers, which writers may put into one field."""
    if values and isinstance(values[0], int):
        return values
    found = []
    for data in values:
        at = 0
        while at < len(data):
            value, at = read_varint(data, at)
            found.append(value)
    return found


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    fields = _grouped(data)
    values = np.frombuffer(fields[9][0], TYPES[fields[2][0]]).reshape(_packed(fields.get(1, [])))
    return str(fields[8][0], "utf-8"), values


def _node(data: memoryview) -> tuple[Callable[..., Any], list[str], list[str], Attributes]:
    fields = _grouped(data)
    names, outputs, (kind,) = ([str(text, "utf-8") for text in fields.get(number, [])] for number in (1, 2, 4))
    return OPERATORS[kind], names, outputs, dict(map(_attribute, fields.get(5, [])))


def _attribute(data: memoryview) -> tuple[str, Any]:
    fields = _grouped(data)
    values: Any = _packed(fields[8]) if 8 in fields else fields[3][0] if 3 in fields else None
    if 2 in fields:
        (values,) = struct.unpack("<f", fields[2][0])
    elif 4 in fields:
        values = str(fields[4][0], "utf-8")
    return str(fields[1][0], "utf-8"), values


def _cast(x: np.ndarray, to: int) -> np.ndarray:
    return x.astype(TYPES[to])


def _dequantise(codes: np.ndarray, scales: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Left to the product: scaling its columns is quicker than scaling the matrix."""
    if axis != codes.ndim - 1:
        raise ValueError("a scale for each row")
    return codes, scales


def _matmul(x: np.ndarray, y: np.ndarray | tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    if isinstance(y, np.ndarray):
        return x @ y
    codes, scales = y
    return (_product(x.reshape(-1, x.shape[-1]), codes.astype(np.float32)) * scales).reshape(*x.shape[:-1], -1)


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`x @ y` of matrices, in parts for which OpenBLAS leaves its threads asleep: woken, they take longer than this."""
    found = np.zeros((len(x), y.shape[1]), np.float32)
    parts = -(-len(x) // ROWS)
    step = UNTHREADED // (-(-len(x) // parts) * y.shape[1])
    for rows, out in zip(np.array_split(x, parts), np.array_split(found, parts), strict=True):
        for i in range(0, len(y), step):
            out += rows[:, i : i + step] @ y[i : i + step]
    return found


def _reshape(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return x.reshape([size or x.shape[i] for i, size in enumerate(shape.tolist())])


def _slice(x: np.ndarray, starts: np.ndarray, ends: np.ndarray, axes: np.ndarray) -> np.ndarray:
    where: list[slice] = [slice(None)] * x.ndim
    for start, end, axis in zip(starts, ends, axes, strict=True):
        where[axis] = slice(start, end)
    return x[tuple(where)]


def _layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, axis: int, epsilon: float) -> np.ndarray:
    x = x - x.mean(axis, keepdims=True)
    return x / np.sqrt((x * x).mean(axis, keepdims=True) + np.float32(epsilon)) * gain + bias


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def _gelu(x: np.ndarray) -> np.ndarray:
    """With erf to 1.5e-7 by formula 7.1.26 of Abramowitz and Stegun, "Handbook of Mathematical Functions"."""
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    rest = np.float32(0)
    for factor in reversed(ERF):
        rest = (rest + np.float32(factor)) * t
    return x * (1 + np.copysign(1 - rest * np.exp(-z * z), x)) / 2


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "BitShift": lambda x, by, direction: x >> by if direction == "RIGHT" else x << by,
    "BitwiseAnd": np.bitwise_and,
    "Cast": _cast,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
    "DequantizeLinear": _dequantise,
    "Gather": lambda x, which, axis=0: x.take(which, axis),
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "LpNormalization": lambda x, axis, p: x / np.linalg.norm(x, p, axis, keepdims=True),
    "MatMul": _matmul,
    "Mul": np.multiply,
    "ReduceMean": lambda x, axes, keepdims: x.mean(tuple(axes), keepdims=bool(keepdims)),
    "Reshape": _reshape,
    "Shape": lambda x, start, end: np.array(x.shape[start:end]),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": lambda x, axis, num_outputs: np.split(x, num_outputs, axis),
    "Sub": np.subtract,
    "Transpose": lambda x, perm: x.transpose(perm),
}
