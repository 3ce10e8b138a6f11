"""Models from nothing: tiny ones, architectures by name, folders with a configuration alone, two towers."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from vlmkit.errors import VlmkitError
from vlmkit.models.find import OPEN_CLIP_CONFIG, PICKLES
from vlmkit.train.contrastive.towers import build
from vlmkit.train.contrastive.towers import save as save_towers
from vlmkit.train.rows import Captioned

TINY = "tiny"
PIECES = 1024  # of the tiny tokenizer
CONTEXT = 32  # tokens of its captions
SIDE = 64  # of the tiny model's pictures
MARKS = ["<|startoftext|>", "<|endoftext|>"]


def is_new(start: str) -> bool:
    """Whether the model `start` has no weights yet."""
    if start == TINY:
        return True
    folder = Path(start.removeprefix("local-dir:"))
    if folder.is_dir():
        return not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", *PICKLES))
    return start in open_clip.list_models()


@contextmanager
def new_model(start: str, samples: Sequence[Captioned]) -> Iterator[str]:
    """A folder with the model `start`, which `is_new`, and its first weights, that lives as long as the block.

    The weights are drawn from torch's generator. Raises VlmkitError where the configuration makes no model.
    """
    with tempfile.TemporaryDirectory(prefix="vlmkit-new-") as name:
        made = Path(name)
        try:
            if start == TINY:
                _tiny(made, samples)
            elif (folder := Path(start.removeprefix("local-dir:"))).is_dir():
                shutil.copytree(folder, made, dirs_exist_ok=True)
                _fill(made)
            else:
                settings = {"model_cfg": open_clip.get_model_config(start), "preprocess_cfg": {}}
                (made / OPEN_CLIP_CONFIG).write_text(json.dumps(settings))
                _fill(made)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise VlmkitError(f"no model can be made of {start} ({reason})", "check its configuration") from None
        yield name


@contextmanager
def joined_towers(vision: str, text: str, dim: int) -> Iterator[str]:
    """A folder with one model of two pretrained towers and new heads, that lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="vlmkit-new-") as name:
        model, description = build(vision, text, dim, dropout=0.0)
        save_towers(model, description, text, Path(name), Path(name))
        yield name


def _fill(folder: Path) -> None:
    """Add first weights to a folder that has a configuration alone."""
    file = folder / OPEN_CLIP_CONFIG
    if not file.is_file():
        _write(AutoModel.from_config(AutoConfig.from_pretrained(folder)), folder)
        return
    settings = json.loads(file.read_text())
    if (folder / "config.json").is_file():
        settings["model_cfg"]["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
        file.write_text(json.dumps(settings))
    _write(open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False), folder)


def _write(model: nn.Module, folder: Path) -> None:
    """Add the weights of `model`; `save_pretrained` of transformers writes in the first process alone."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _tiny(folder: Path, samples: Sequence[Captioned]) -> None:
    tokenizer = _tokenizer([caption for sample in samples for caption in sample.captions])
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 128}
    start, end = (tokenizer.get_vocab()[mark] for mark in MARKS)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, **layers}
    text |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    vision = {"image_size": SIDE, "patch_size": 16, **layers}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    config.save_pretrained(folder)
    _write(CLIPModel(config), folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


def _tokenizer(texts: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with merges that `texts` taught: all bytes, so that nothing is unknown."""
    letters = sorted(ByteLevel.alphabet())
    letters += [f"{letter}</w>" for letter in letters]

    def with_merges(merges: list[Any]) -> CLIPTokenizer:
        pieces = [*letters, *("".join(merge) for merge in merges), *MARKS]
        vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)

    taught: Any = with_merges([]).train_new_from_iterator(texts, PIECES, show_progress=False)
    merges = json.loads(taught.backend_tokenizer.to_str())["model"]["merges"]
    return with_merges([tuple(merge) for merge in merges])
