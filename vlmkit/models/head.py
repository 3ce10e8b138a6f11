"""A linear head on the vectors of a frozen embedder, as `vlmkit train head` saves it: classes, or a number."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.io.records import fingerprint_of, name_of

if TYPE_CHECKING:
    import numpy as np

    from vlmkit.models.types import Embedder

MODEL_TYPE = "vlmkit_head"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CLASS, CLASSES, NUMBER = "class", "classes", "number"
REMEDY = "name a folder that vlmkit train head made"


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """`target`: one of L labels (CLASS), each of them or not (CLASSES), or a NUMBER, without labels.

    `embedder` is the identity of the model of the vectors, of `dim` numbers.
    """

    target: str
    labels: list[str]
    embedder: str
    dim: int


@dataclass(frozen=True, slots=True)
class Head:
    """`weight` (L, D) and `bias` (L), float32; of a number L is 1."""

    config: HeadConfig
    weight: "np.ndarray"
    bias: "np.ndarray"

    def predict(self, vectors: "np.ndarray") -> "np.ndarray":
        """N vectors (N, D) -> (N, L): probabilities, or numbers."""
        return activated(self.config.target, vectors @ self.weight.T + self.bias)

    def ranked(self, vector: "np.ndarray") -> list[dict[str, Any]]:
        """Each label with its probability for a vector (D), the best one first."""
        scores = self.predict(vector[None])[0].tolist()
        pairs = sorted(zip(self.config.labels, scores, strict=True), key=lambda pair: -pair[1])
        return [{"label": label, "score": round(score, 6)} for label, score in pairs]

    def check(self, model: "Embedder") -> None:
        """Raise VlmkitError unless `model` is the one whose vectors the head was fitted to."""
        if fingerprint_of(model.identity) != fingerprint_of(self.config.embedder):
            what = f"the head was fitted to vectors of {self.config.embedder}, not of {model.identity}"
            raise VlmkitError(what, "use that model, or train the head again")


def activated(target: str, logits: "np.ndarray") -> "np.ndarray":
    """(N, L) probabilities of `logits`: softmax of one class, sigmoids of several; a number stays as it is."""
    import numpy as np

    if target == NUMBER:
        return logits
    if target == CLASSES:
        return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def is_head(name: str) -> bool:
    """Whether the model called `name` is the folder of a head."""
    try:
        return json.loads((Path(name) / CONFIG).read_bytes()).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, AttributeError):
        return False


def embedder_of(name: str) -> str:
    """The name of the embedder of the model called `name`: of a head its own, else `name`."""
    return name_of(open_head(name).config.embedder) if is_head(name) else name


def save_head(head: Head, folder: Path) -> None:
    """Write configuration and weights into `folder`."""
    from safetensors.numpy import save_file

    settings = {"model_type": MODEL_TYPE, **asdict(head.config)}
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    save_file({"weight": head.weight, "bias": head.bias}, folder / WEIGHTS)
    os.chmod(folder / WEIGHTS, (folder / CONFIG).stat().st_mode)  # safetensors makes files that only their owner reads


def open_head(folder: str | Path) -> Head:
    """The head in `folder`. Raises VlmkitError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not is_head(str(folder)):
        raise VlmkitError(f"{folder} holds no head", REMEDY)
    try:
        settings = json.loads((Path(folder) / CONFIG).read_bytes())
        config = HeadConfig(**{name: settings[name] for name in HeadConfig.__slots__})
        tensors = load_file(Path(folder) / WEIGHTS)
        head = Head(config, tensors["weight"], tensors["bias"])
        rows = 1 if config.target == NUMBER else len(config.labels)
        if head.weight.shape != (rows, config.dim) or head.bias.shape != (rows,):
            raise ValueError("weights and configuration do not fit each other")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise VlmkitError(f"the head in {folder} cannot be opened ({error})", REMEDY) from None
    return head


def known_labels(head: Head, wanted: Sequence[str]) -> Iterator[str]:
    """Those of `wanted` that the head does not know."""
    return (label for label in wanted if label not in head.config.labels)
