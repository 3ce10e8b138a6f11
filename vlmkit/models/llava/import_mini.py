"""Back from the files that `mini` talks with to a folder that `vlmkit train` goes on from.

Where each weight stands in the graph tells the writer of the graph itself: it is given weights that are their own
numbers, and the graph of these says which number stands where.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from vlmkit.errors import VlmkitError, first_line
from vlmkit.models.chat.mini import GRAPH, TOKENIZER
from vlmkit.models.llava.model import build
from vlmkit.models.resolve import MINI_FOLDER
from vlmkit.recipes.mini.export_chat import STORES, talk_side
from vlmkit.recipes.mini.tokenizer import HEAD, llama, read_tokenizer

FIRST, LAST = 2**20, 2**24  # of the numbers: no constant of the graph is as large; float32 holds all of them


@contextmanager
def trainable(name: str) -> Iterator[str]:
    """A folder that transformers opens for `mini` and for what `pack_talk` wrote; any other one as it is."""
    packed = MINI_FOLDER if name == "mini" else Path(name)
    if not (packed / GRAPH).is_file():
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="vlmkit-") as folder:
        unpack_talk(packed, Path(folder))
        yield folder


def unpack_talk(packed: Path, out: Path) -> None:
    """Write a LlavaForConditionalGeneration on mini's image tower into the folder `out`, from what `pack_talk` wrote.

    Its weights are those that the packed model computes with, in float32; packed again they give the same bytes. Raises
    VlmkitError for damaged files, and for graphs of other models than `vlmkit.recipes.mini.tokenizer` makes.
    """
    try:
        graph, tokenizer = onnx.load(packed / GRAPH).graph, read_tokenizer(packed / TOKENIZER)
    except Exception as error:  # each library has its own, tokenizers no other than this
        raise VlmkitError(f"{packed} is no whole model ({first_line(error)})", "name another one with --from") from None
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    _, heads, size, _ = shapes.get("key0", [0] * 4)
    layers = sum(name.startswith("key") for name in shapes)
    other = VlmkitError(f"{packed / GRAPH} is no model of the form of mini's", "go on from the folder it was made of")
    if size != HEAD:
        raise other
    with tempfile.TemporaryDirectory(prefix="vlmkit-") as folder:
        llama(Path(folder), tokenizer, shapes["logits"][1], heads * size, layers)
        vlm = build("mini", folder, "mlp")
    weights = {name: value for name, value in vlm.model.state_dict().items() if name != "lm_head.weight"}
    ends = FIRST + np.cumsum([value.numel() for value in weights.values()])
    numbers = {
        name: np.arange(end - value.numel(), end, dtype=np.float32).reshape(value.shape)
        for (name, value), end in zip(weights.items(), ends.tolist(), strict=True)
    }
    suppressed = vlm.model.generation_config.suppress_tokens or []
    same = onnx.load_from_string(talk_side(numbers, vlm.model.config, STORES["float32"], suppressed)).graph
    places, values = list(_constants(same)), list(_constants(graph))
    if ends[-1] > LAST or [place.shape for place in places] != [value.shape for value in values]:
        raise other
    found = np.empty(ends[-1] - FIRST, np.float32)
    for place, value in zip(places, values, strict=True):
        if place.size and place.min() >= FIRST:
            found[place.astype(np.int64) - FIRST] = value
        elif not np.array_equal(place, value):
            raise other
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(torch.from_numpy(found[numbers[name].astype(np.int64) - FIRST]))
    from vlmkit.train.vlm.run import save

    save(vlm, out)


def _constants(graph: onnx.GraphProto) -> Iterator[np.ndarray]:
    """All that stands in the graph, in order; what is kept in int8 as what it is computed with."""
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
