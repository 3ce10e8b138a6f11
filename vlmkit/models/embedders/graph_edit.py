"""ONNX graphs changed when they are opened, without the package `onnx`. The file, a model's identity, stays.

The numbers of fields are those of onnx.proto; of ModelProto, GraphProto and NodeProto all are integers or bytes.
"""

from collections.abc import Callable
from typing import NamedTuple

from vlmkit.models.embedders.protobuf import read_fields, serialized

GRAPH = 7  # of ModelProto
NODE, INPUT, OUTPUT = 1, 11, 12  # of GraphProto
FLOAT, INT64 = 1, 7  # of TensorProto.DataType


class Node:
    """One operation: names of the tensors that it takes and makes, and its attributes as they are stored."""

    def __init__(self, data: memoryview) -> None:
        found = [*read_fields(data)]
        self.inputs, self.outputs, kind = ([str(v, "utf-8") for n, v in found if n == number] for number in (1, 2, 4))
        self.kind = kind[0]
        self._rest = [field for field in found if field[0] not in (1, 2, 4)]

    def set_int(self, name: str, value: int) -> None:
        """Make the integer `name` the only attribute."""
        self._rest = [(5, serialized((1, name), (3, value), (20, 2)))]

    def serialized(self) -> bytes:
        names = [(1, name) for name in self.inputs] + [(2, name) for name in self.outputs]
        return serialized(*names, (4, self.kind), *self._rest)


class Tensor(NamedTuple):
    """An input or output of a graph; a size that is a text stands for any number."""

    name: str
    kind: int
    shape: tuple[int | str, ...]

    def serialized(self) -> bytes:
        sizes = [serialized((2 if isinstance(size, str) else 1, size)) for size in self.shape]
        shape = serialized(*((1, size) for size in sizes))
        return serialized((1, self.name), (2, serialized((1, serialized((1, self.kind), (2, shape))))))


class EditedGraph:
    """The nodes of a serialized model, to be changed in place. Raises ValueError if it is cut or damaged."""

    def __init__(self, model: bytes) -> None:
        self._model = [*read_fields(memoryview(model))]
        self._rest = [*read_fields(next((value for number, value in self._model if number == GRAPH), memoryview(b"")))]
        self.nodes = [Node(value) for number, value in self._rest if number == NODE]

    def node(self, kind: str, maker: str = "") -> Node:
        """The first node of that kind (whose first input one of the kind `maker` makes). Raises ValueError."""
        for node in self.nodes:
            if node.kind == kind and (not maker or self.maker(node.inputs[0]).kind == maker):
                return node
        raise ValueError(f"the graph has no {kind}" + f" of a {maker}" * bool(maker))

    def maker(self, name: str) -> Node:
        """The node that makes the tensor `name`. Raises ValueError for an input or a weight."""
        for node in self.nodes:
            if name in node.outputs:
                return node
        raise ValueError(f"no node of the graph makes {name}")

    def add_input(self, tensor: Tensor) -> None:
        self._rest.append((INPUT, tensor.serialized()))

    def add_output(self, tensor: Tensor) -> None:
        self._rest.append((OUTPUT, tensor.serialized()))

    def drop_input(self, name: str) -> None:
        is_it = [number == INPUT and dict(read_fields(value))[1] == name.encode() for number, value in self._rest]
        self._rest = [field for field, drop in zip(self._rest, is_it, strict=True) if not drop]

    def serialized(self) -> bytes:
        nodes = [(NODE, node.serialized()) for node in self.nodes]
        graph = serialized(*nodes, *(field for field in self._rest if field[0] != NODE))
        return serialized(*(field for field in self._model if field[0] != GRAPH), (GRAPH, graph))


def edited(model: bytes, edit: Callable[[EditedGraph], None]) -> bytes:
    graph = EditedGraph(model)
    edit(graph)
    return graph.serialized()
