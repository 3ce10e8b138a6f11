"""Turns the ONNX files of `mini` into a folder that `vlmkit train` can continue from.

`talk-layout.json` names, for each tensor of talk.onnx in its order, the weights that it holds; of a constant it keeps a
fingerprint, since a graph with other constants computes something else.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, PreTrainedTokenizerFast

from vlmkit.errors import VlmkitError, first_line
from vlmkit.models.chat.mini import GRAPH, TOKENIZER
from vlmkit.models.llava.model import build, save
from vlmkit.models.resolve import MINI_FOLDER

if TYPE_CHECKING:
    import onnx

LAYOUT = "talk-layout.json"


@contextmanager
def trainable(name: str) -> Iterator[str]:
    """A folder for transformers with the model of `mini` or of a folder packed like it; else `name` as it is."""
    packed = MINI_FOLDER if name == "mini" else Path(name)
    if not (packed / GRAPH).is_file():
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="vlmkit-") as folder:
        import_mini(packed, Path(folder))
        yield folder


def import_mini(packed: Path, out: Path) -> None:
    """Write a LlavaForConditionalGeneration on mini's image tower into the folder `out`.

    Its weights are those that the packed model computes with, in float32. Raises VlmkitError for damaged files, and for
    graphs that are not of the form that the layout describes.
    """
    import onnx

    try:
        graph = onnx.load(packed / GRAPH).graph
        layout = json.loads((packed / LAYOUT).read_bytes())
        tokenizer = Tokenizer.from_file(str(packed / TOKENIZER))
    except Exception as error:  # each library has its own, tokenizers no other than this
        raise VlmkitError(f"{packed} is incomplete ({first_line(error)})", "name another one with --from") from None
    with tempfile.TemporaryDirectory(prefix="vlmkit-") as folder:
        LlamaConfig(**layout["config"]).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **layout["tokenizer"]).save_pretrained(folder)
        vlm = build("mini", folder, "mlp")
    weights = vlm.model.state_dict()
    tensors = list(graph_tensors(graph))
    if len(tensors) != len(layout["tensors"]):
        raise _other(packed)
    for tensor, entry in zip(tensors, layout["tensors"], strict=True):
        if isinstance(entry, str):
            if tensor_fingerprint(tensor) != entry:
                raise _other(packed)
            continue
        values = tensor.T if entry["transposed"] else tensor
        sizes = [math.prod(weights[name].shape) for name in entry["weights"]]
        if values.size != sum(sizes):
            raise _other(packed)
        for name, part in zip(entry["weights"], np.split(values.ravel(), np.cumsum(sizes)[:-1]), strict=True):
            with torch.no_grad():
                weights[name].copy_(torch.tensor(part.reshape(weights[name].shape)))
    save(vlm, out)


def _other(packed: Path) -> VlmkitError:
    return VlmkitError(f"{packed / GRAPH} does not match {LAYOUT}", "go on from the folder it was made of")


def tensor_fingerprint(tensor: np.ndarray) -> str:
    """Twelve hex digits over type, shape and values."""
    header = f"{tensor.dtype} {tensor.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(tensor).tobytes()).hexdigest()[:12]


def graph_tensors(graph: "onnx.GraphProto") -> Iterator[np.ndarray]:
    """All weights and constants of the graph, in order; those stored in int8 dequantised."""
    from onnx import numpy_helper

    kept = {value.name: value for value in graph.initializer}
    rounded = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    scales = {node.input[1] for node in rounded.values()}
    for name, value in kept.items():
        if name in scales:
            continue
        array = numpy_helper.to_array(value)
        if node := rounded.get(name):
            shape = [-1 if axis == node.attribute[0].i else 1 for axis in range(array.ndim)]
            array = array * numpy_helper.to_array(kept[node.input[1]]).reshape(shape)
        yield array
