"""The chat model of `mini` as ONNX: from a folder of `vlmkit train`, a LLaVA on mini's image tower with a Llama as its
language model, to talk.onnx (projector and language model), its tokenizer and talk.json.

All rows of one call have the same number of tokens; the caller marks padding in `mask` and `positions`. `rows` selects
the rows of the cache that the new tokens follow, so one call continues a prompt several times, reorders beams and drops
rows that have ended. Keys are cached transposed, as the product with the queries needs them. `Decoder` opens the graph
without `rows` and with logits of several tokens.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.mini import CONFIG, GRAPH, TOKENIZER, Prompts
from vlmkit.models.chat.mini_graphs import IMAGE, PLACE, PLACES, WIDTH
from vlmkit.models.llava.import_mini import LAYOUT, graph_tensors, tensor_fingerprint
from vlmkit.models.llava.vision import MiniGridConfig
from vlmkit.models.resolve import MINI_FOLDER
from vlmkit.recipes.mini.onnx_graph import Graph, Shape
from vlmkit.recipes.mini.tokenizer import TOKENIZER_SETTINGS

Weights = Mapping[str, np.ndarray]
Store = Callable[[Graph, np.ndarray, int], str]  # keeps a weight, with one scale for each index of an axis
STORES: dict[str, Store] = {
    "int8": lambda graph, value, axis: graph.int8(value, axis),
    "float16": lambda graph, value, axis: graph.half(value),
    "float32": lambda graph, value, axis: graph.floats(value),
}
NEVER = -1e9  # a logit
FIRST, LAST = 2**20, 2**24  # of the numbers of weights: no constant is as large; float32 holds all of them
LANGUAGE = "model.language_model."
PROJECTOR = "model.multi_modal_projector."


def chat_graph(weights: Weights, config: Any, store: Store, suppressed: list[int]) -> bytes:
    """The graph of a LlavaForConditionalGeneration; `weights` and `config` under transformers' names.

    The tokens `suppressed`, such as that of pictures, are never said.

    `ids` (N, L) int64, `positions` (N, L) int64, `mask` (N, L, S) float32 that is added to the scores, `rows` (N,)
    int64, `grid` (M, 49, 1280) float32 whose places stand in order where `ids` is -1, and for each layer `key`
    (P, K, D, T) and `value` (P, K, T, D) -> `logits` (N, V) of the last token, `new_key`, `new_value` with S = T + L.
    """
    text = config.text_config
    graph = Graph()
    words = store(graph, weights[f"{LANGUAGE}embed_tokens.weight"], 0)  # (V, W)
    head = words if config.tie_word_embeddings else store(graph, weights["lm_head.weight"], 0)
    x = _embedded(graph, words, _projected(graph, weights, store))  # (N, L, W)
    layers = _Layers(graph, weights, text, store)
    for number in range(text.num_hidden_layers):
        x = layers.add(x, number)
    last = graph.add("Squeeze", graph.add("Gather", x, graph.ints(-1), axis=1), graph.ints(1))  # (N, W)
    never = np.where(np.isin(np.arange(text.vocab_size), suppressed), NEVER, 0)
    graph.add("Gemm", layers.norm(last, f"{LANGUAGE}norm.weight"), head, graph.floats(never), out="logits", transB=1)

    inputs: dict[str, tuple[int, Shape]] = {
        "ids": (TensorProto.INT64, ["N", "L"]),
        "positions": (TensorProto.INT64, ["N", "L"]),
        "mask": (TensorProto.FLOAT, ["N", "L", "S"]),
        "rows": (TensorProto.INT64, ["N"]),
        "grid": (TensorProto.FLOAT, ["M", PLACES, WIDTH]),
    }
    outputs: dict[str, Shape] = {"logits": ["N", text.vocab_size]}
    heads, size = text.num_key_value_heads, text.head_dim
    for number in range(text.num_hidden_layers):
        inputs[f"key{number}"] = TensorProto.FLOAT, ["P", heads, size, "T"]
        inputs[f"value{number}"] = TensorProto.FLOAT, ["P", heads, "T", size]
        outputs[f"new_key{number}"] = ["N", heads, size, "S"]
        outputs[f"new_value{number}"] = ["N", heads, "S", size]
    return graph.model(inputs, outputs)


def _projected(graph: Graph, weights: Weights, store: Store) -> str:
    """(M x 49 + 1, W): a row of zeros, then the pictures' places as the language model sees them (LLaVA-1.5's MLP)."""
    x = "grid"
    for number, name in enumerate(("linear_1", "linear_2")):
        kernel, bias = weights[f"{PROJECTOR}{name}.weight"], weights.get(f"{PROJECTOR}{name}.bias")
        x = graph.add("MatMul", graph.add("Gelu", x) if number else x, store(graph, kernel.T, 1))
        x = graph.add("Add", x, graph.floats(bias)) if bias is not None else x
    rows = graph.add("Reshape", x, graph.ints(-1, len(kernel)))
    return graph.add("Concat", graph.floats(np.zeros((1, len(kernel)))), rows, axis=0)


def _embedded(graph: Graph, words: str, seen: str) -> str:
    """(N, L, W): words from their table, the k-th place of the call from row k of `seen`."""
    is_image = graph.add("Less", "ids", graph.ints(0))  # (N, L)
    ones = graph.add("Cast", is_image, to=TensorProto.INT64)
    count = graph.add("CumSum", graph.add("Reshape", ones, graph.ints(-1)), graph.ints(0))
    number = graph.add("Mul", graph.add("Reshape", count, graph.add("Shape", "ids")), ones)  # 0 for words
    picked = graph.add("Unsqueeze", is_image, graph.ints(2))
    return graph.add("Where", picked, graph.add("Gather", seen, number), graph.add("Gather", words, "ids"))


class _Layers:
    """Layers of Llama (Touvron and others, 2023): RMS norms, rotary positions, grouped queries, SwiGLU."""

    def __init__(self, graph: Graph, weights: Weights, text: Any, store: Store) -> None:
        self.graph, self.weights, self.text, self.store = graph, weights, text, store
        self.queries, self.keys, self.size = text.num_attention_heads, text.num_key_value_heads, text.head_dim
        frequencies = text.rope_parameters["rope_theta"] ** (-np.arange(0, self.size, 2) / self.size)
        places = graph.add("Unsqueeze", graph.add("Cast", "positions", to=TensorProto.FLOAT), graph.ints(1, 2, 4))
        angles = graph.add("Mul", places, graph.floats(frequencies))  # (N, 1, 1, L, D / 2)
        self.cos, self.sin = graph.add("Cos", angles), graph.add("Sin", angles)
        self.mask = graph.add("Unsqueeze", "mask", graph.ints(1, 2))  # (N, 1, 1, L, S)

    def add(self, x: str, number: int) -> str:
        """Layer `number`: (N, L, W) -> (N, L, W)."""
        at = f"{LANGUAGE}layers.{number}."
        mixed = self._attention(self.norm(x, f"{at}input_layernorm.weight"), f"{at}self_attn.", number)
        x = self.graph.add("Add", x, mixed)
        gate, up = self._linear(
            self.norm(x, f"{at}post_attention_layernorm.weight"),
            [f"{at}mlp.gate_proj", f"{at}mlp.up_proj"],
            [self.text.intermediate_size] * 2,
        )
        gate = self.graph.add("Mul", gate, self.graph.add("Sigmoid", gate))
        (inner,) = self._linear(self.graph.add("Mul", gate, up), [f"{at}mlp.down_proj"])
        return self.graph.add("Add", x, inner)

    def norm(self, x: str, name: str) -> str:
        graph = self.graph
        square = graph.add("ReduceMean", graph.add("Pow", x, graph.floats(np.array(2))), graph.ints(-1), keepdims=1)
        root = graph.add("Sqrt", graph.add("Add", square, graph.floats(np.array(self.text.rms_norm_eps))))
        return graph.add("Mul", graph.add("Div", x, root), graph.floats(self.weights[name]))

    def _linear(self, x: str, names: list[str], sizes: list[int] | None = None) -> list[str]:
        """The products of `x` with several matrices, computed as one."""
        graph = self.graph
        kernel = np.concatenate([self.weights[f"{name}.weight"] for name in names])
        x = graph.add("MatMul", x, self.store(graph, kernel.T, 1))
        if f"{names[0]}.bias" in self.weights:
            x = graph.add("Add", x, graph.floats(np.concatenate([self.weights[f"{name}.bias"] for name in names])))
        return [x] if sizes is None else graph.split("Split", x, graph.ints(*sizes), outputs=len(sizes), axis=-1)

    def _attention(self, x: str, at: str, number: int) -> str:
        graph, size = self.graph, self.size
        widths = [self.queries * size, self.keys * size, self.keys * size]
        q, k, v = self._linear(x, [f"{at}q_proj", f"{at}k_proj", f"{at}v_proj"], widths)
        q = self._rotated(self._by_head(q, self.queries // self.keys))  # (N, K, G, L, D)
        k = graph.add("Squeeze", self._rotated(self._by_head(k, 1)), graph.ints(2))  # (N, K, L, D)
        v = graph.add("Squeeze", self._by_head(v, 1), graph.ints(2))
        k = self._cached("key", number, graph.add("Transpose", k, perm=[0, 1, 3, 2]), 3)  # (N, K, D, S)
        v = self._cached("value", number, v, 2)  # (N, K, S, D)
        scores = graph.add("MatMul", q, graph.add("Unsqueeze", k, graph.ints(2)))
        scores = graph.add("Mul", scores, graph.floats(np.array(size**-0.5)))
        shares = graph.add("Softmax", graph.add("Add", scores, self.mask), axis=-1)  # (N, K, G, L, S)
        mixed = graph.add("MatMul", shares, graph.add("Unsqueeze", v, graph.ints(2)))
        mixed = graph.add("Transpose", mixed, perm=[0, 3, 1, 2, 4])  # (N, L, K, G, D)
        (out,) = self._linear(graph.add("Reshape", mixed, graph.ints(0, 0, self.queries * size)), [f"{at}o_proj"])
        return out

    def _by_head(self, x: str, group: int) -> str:
        """(N, L, K x G x D) -> (N, K, G, L, D)."""
        apart = self.graph.add("Reshape", x, self.graph.ints(0, 0, self.keys, group, self.size))
        return self.graph.add("Transpose", apart, perm=[0, 2, 3, 1, 4])

    def _rotated(self, x: str) -> str:
        """Rotary position embedding (Su and others, 2021): the first half of D turns with the second."""
        graph = self.graph
        a, b = graph.split("Split", x, outputs=2, axis=-1, num_outputs=2)
        first = graph.add("Sub", graph.add("Mul", a, self.cos), graph.add("Mul", b, self.sin))
        second = graph.add("Add", graph.add("Mul", b, self.cos), graph.add("Mul", a, self.sin))
        return graph.add("Concat", first, second, axis=-1)

    def _cached(self, kind: str, number: int, new: str, axis: int) -> str:
        past = self.graph.add("Gather", f"{kind}{number}", "rows")
        return self.graph.add("Concat", past, new, out=f"new_{kind}{number}", axis=axis)


SAMPLES = ["", "what color is the car?", "a dog, 2 men and   a boat?", "is it red"]


def export_chat(folder: Path, out: Path, weights: str = "int8") -> None:
    """Write the chat model of `mini` into the folder `out`, with `image.onnx` if that is a folder of its own.

    `folder` holds a LlavaForConditionalGeneration on mini's image tower with a Llama; `weights` are kept as int8,
    float16 or float32. Raises VlmkitError for models that `MiniChat` would not run as they were trained.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    processor = AutoProcessor.from_pretrained(folder)
    _check_model(folder, model.config)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / GRAPH).write_bytes(
        chat_graph(arrays, model.config, STORES[weights], model.generation_config.suppress_tokens or [])
    )
    processor.tokenizer.backend_tokenizer.save(str(out / TOKENIZER))
    settings = {"context": model.config.text_config.max_position_embeddings}
    (out / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    if (tensors := layout(model, onnx.load(out / GRAPH).graph)) is not None:
        (out / LAYOUT).write_text(json.dumps(tensors, indent=1) + "\n")
    if not (out / IMAGE).exists():
        shutil.copyfile(MINI_FOLDER / IMAGE, out / IMAGE)
    _check_prompts(folder, processor, Prompts(out / TOKENIZER), model.generation_config.eos_token_id)


def layout(model: Any, graph: onnx.GraphProto) -> dict[str, Any] | None:
    """The layout by which `import_mini` turns `graph`, made of `model`, back: see models/llava/import_mini.py.

    Found by writing the graph again with weights whose values are consecutive numbers: the tensors of that graph
    show where each weight is. None for a model of more weights than float32 can number.
    """
    text = model.config.text_config
    tied = model.config.tie_word_embeddings
    weights = {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    ends = FIRST + np.cumsum([value.numel() for value in weights.values()])
    if ends[-1] > LAST:
        return None
    numbers = {
        name: np.arange(end - value.numel(), end, dtype=np.float32).reshape(value.shape)
        for (name, value), end in zip(weights.items(), ends.tolist(), strict=True)
    }
    suppressed = model.generation_config.suppress_tokens or []
    numbered = onnx.load_from_string(chat_graph(numbers, model.config, STORES["float32"], suppressed)).graph
    names, starts = list(weights), np.concatenate([[FIRST], ends[:-1]])
    tensors: list[Any] = []
    for places, tensor in zip(graph_tensors(numbered), graph_tensors(graph), strict=True):
        if not places.size or places.min() < FIRST:
            tensors.append(tensor_fingerprint(tensor))
            continue
        transposed = places.ndim == 2 and places.shape[1] > 1 and bool(places[0, 1] != places[0, 0] + 1)
        flat = (places.T if transposed else places).ravel()
        here = [names[i] for i in np.flatnonzero(np.isin(starts, flat))]
        here.sort(key=lambda name: int(np.flatnonzero(flat == numbers[name].flat[0])[0]))
        if not np.array_equal(flat, np.concatenate([numbers[name].ravel() for name in here])):
            raise VlmkitError("a tensor of the graph contains parts of weights", "see export_chat.chat_graph")
        tensors.append({"weights": here, "transposed": transposed})
    rows = text.vocab_size
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = {"vocab_size": rows, **{name: getattr(text, name) for name in kept}, "tie_word_embeddings": bool(tied)}
    config |= {"max_position_embeddings": text.max_position_embeddings, "bos_token_id": None}
    config |= {"eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    return {"config": config, "tokenizer": TOKENIZER_SETTINGS, "tensors": tensors}


def _check_model(folder: Path, config: Any) -> None:
    text: Any = getattr(config, "text_config", None)
    known = (
        isinstance(getattr(config, "vision_config", None), MiniGridConfig)
        and text.model_type == "llama"
        and text.hidden_act == "silu"
        and text.rope_parameters["rope_type"] == "default"
        and config.projector_hidden_act == "gelu"
        and config.image_seq_length == PLACES
        and (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    )
    if not known:
        raise VlmkitError(f"{folder} is not a Llama on the image tower of mini", "train it with --vision mini")


def _check_prompts(folder: Path, processor: Any, prompts: Prompts, end: int) -> None:
    """Raise VlmkitError unless the chat template makes the same tokens as `MiniChat`."""
    image = processor.image_token_id
    for pictures, question, system in product(range(3), SAMPLES, ["", "be brief"]):
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}] * bool(question)
        turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": content}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        text = text.replace(processor.image_token, processor.image_token * PLACES)
        expected = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if prompts.head(pictures, system) + prompts.tail(question) != [PLACE if i == image else i for i in expected]:
            what = f"{folder}: the chat template or the tokenizer are not those that mini talks with"
            raise VlmkitError(what, "train from what vlmkit.recipes.mini.tokenizer makes")
    if prompts.end != end:
        raise VlmkitError(f"{folder}: replies end in token {end}, not in </s>", "train it with </s>")
