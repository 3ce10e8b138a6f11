"""The encoders of `mini` as ONNX: from a folder of `vlmkit train contrastive` to two graphs and a tokenizer.

Each graph joins two blocks of a vector: the trained one, and ConSE (Norouzi and others, 2013), made from the class
names of ImageNet. In ConSE a picture is the probability-weighted mean of the text embeddings of its most probable
classes; a text is its own embedding, in the same space.

Image side: EfficientNet-Lite0 with its batch norms folded, the trained head, the ConSE block. Text side: BERT, mean
over the tokens, the trained head, the ConSE block; all texts of a call have the same number of tokens, so there is no
padding and no mask.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto
from open_clip import IMAGENET_CLASSNAMES
from safetensors.numpy import load_file

from vlmkit.models.embedders.mini import CONTEXT, SIZE
from vlmkit.recipes.mini.onnx_graph import Graph
from vlmkit.train.contrastive.two_towers import CaptionEncoder, open_folder

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


NAMES_DIM = 128
NAMES_WEIGHT = 0.3
PROMPT = "a photo of a {}."


def part(weights: Weights, prefix: str) -> Weights:
    """The weights below `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def name_embeddings(trained: Path) -> np.ndarray:
    """Mean-pooled text embeddings (1000, W) of the ImageNet class names, by the trained text tower."""
    model, _, tokenizer = open_folder(trained)
    encoder = CaptionEncoder(model.eval(), tokenizer)
    with torch.inference_mode():
        return encoder.pooled(encoder.tokenize([PROMPT.format(name) for name in IMAGENET_CLASSNAMES])).numpy()


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
