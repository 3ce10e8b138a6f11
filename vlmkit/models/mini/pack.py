# ruff: noqa: TID253 - this file only makes the model; what runs it stands in __init__.py
"""From what training wrote to the files that `mini` runs: two ONNX graphs with small weights, and the tokenizer."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto
from open_clip import IMAGENET_CLASSNAMES
from safetensors.numpy import load_file

from vlmkit.models.mini import CONTEXT, SIZE
from vlmkit.models.mini.blocks import Names, image_vector, text_vector
from vlmkit.models.mini.graph import Graph
from vlmkit.models.mini.image_graph import trunk
from vlmkit.models.mini.text_graph import encoder
from vlmkit.train.contrastive.text import TextSide
from vlmkit.train.contrastive.towers import open_folder

NAMES_DIM = 128
NAMES_WEIGHT = 0.3
PROMPT = "a photo of a {}."

Weights = dict[str, np.ndarray]


def part(weights: Weights, prefix: str) -> Weights:
    """The weights below `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def name_embeddings(trained: Path) -> np.ndarray:
    """Mean-pooled text embeddings (1000, W) of the ImageNet class names, by the trained text tower."""
    model, _, tokenizer = open_folder(trained)
    side = TextSide(model, tokenizer, "cpu", 0)
    return side.pooled(side.prepare([PROMPT.format(name) for name in IMAGENET_CLASSNAMES])).numpy()


def image_side(weights: Weights, classifier: tuple[np.ndarray, np.ndarray], names: Names) -> bytes:
    """The image graph: `pictures` (N, 224, 224, 3) uint8 -> `embedding` (N, D)."""
    graph = Graph()

    def store(kernel: np.ndarray, axis: int) -> str:
        # Depthwise kernels and the stem are few and suffer most from rounding.
        return graph.int8(kernel, axis) if kernel.shape[2:] == (1, 1) else graph.half(kernel)

    pooled = trunk(graph, part(weights, "visual.trunk."), "pictures", store)
    head = part(weights, "visual.head.mlp.")
    inner = graph.add("MatMul", pooled, graph.int8(head["fc1.weight"].T, 1))
    inner = graph.add("Gelu", graph.add("Add", inner, graph.floats(head["fc1.bias"])))
    trained = graph.add("MatMul", inner, graph.int8(head["fc2.weight"].T, 1))
    kernel, bias = classifier
    out = image_vector(graph, pooled, trained, graph.int8(kernel.T, 1), bias, names)
    dim = len(head["fc2.weight"]) + names.basis.shape[1]
    return graph.model({"pictures": (TensorProto.UINT8, ["N", SIZE, SIZE, 3])}, {out: ["N", dim]})


def text_side(weights: Weights, config: dict[str, int], names: Names) -> bytes:
    """The text graph: `ids` (N, L) int64, all of one length -> `embedding` (N, D)."""
    graph = Graph()
    tower = part(weights, "text.transformer.")
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    pooled = encoder(graph, tower, "ids", graph.int8, layers=layers, heads=heads, context=CONTEXT)
    inner = graph.add("Gelu", graph.add("MatMul", pooled, graph.int8(weights["text.proj.0.weight"].T, 1)))
    trained = graph.add("MatMul", inner, graph.int8(weights["text.proj.2.weight"].T, 1))
    out = text_vector(graph, pooled, trained, names)
    dim = len(weights["text.proj.2.weight"]) + names.basis.shape[1]
    return graph.model({"ids": (TensorProto.INT64, ["N", "L"])}, {out: ["N", dim]})


def pack(trained: Path, vision: Path, out: Path, *, weight: float = NAMES_WEIGHT, dim: int = NAMES_DIM) -> None:
    """Write image.onnx, text.onnx, tokenizer.json into `out` from a folder of `vlmkit train contrastive`.

    `vision` is the image tower's own folder, for its classifier.
    """
    weights = load_file(trained / "model.safetensors")
    backbone = load_file(vision / "model.safetensors")
    names = Names.of(name_embeddings(trained), dim, weight)
    config = json.loads((trained / "config.json").read_text())
    classifier = (backbone["classifier.weight"], backbone["classifier.bias"])
    (out / "image.onnx").write_bytes(image_side(weights, classifier, names))
    (out / "text.onnx").write_bytes(text_side(weights, config, names))
    (out / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
