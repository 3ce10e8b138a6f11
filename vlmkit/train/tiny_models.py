"""Models from nothing: tiny ones, architectures by name, folders with a configuration alone, two towers.

Towers of the real classes, tiny and fresh, for trying a run out: nothing is downloaded, nothing needed.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from vlmkit.errors import VlmkitError
from vlmkit.models.resolve import OPEN_CLIP_CONFIG
from vlmkit.train.config import TINY
from vlmkit.train.contrastive.two_towers import build
from vlmkit.train.contrastive.two_towers import save as save_towers
from vlmkit.train.data.samples import Captioned, Dialogue, Preference

DUAL_PIECES = 1024  # of the tiny tokenizer
CONTEXT = 32  # tokens of its captions
SIDE = 64  # of the tiny model's pictures
MARKS = ["<|startoftext|>", "<|endoftext|>"]


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
    tokenizer = _clip_tokenizer([caption for sample in samples for caption in sample.captions])
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


def _clip_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with merges that `texts` taught: all bytes, so that nothing is unknown."""
    letters = sorted(ByteLevel.alphabet())
    letters += [f"{letter}</w>" for letter in letters]

    def with_merges(merges: list[Any]) -> CLIPTokenizer:
        pieces = [*letters, *("".join(merge) for merge in merges), *MARKS]
        vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)

    taught: Any = with_merges([]).train_new_from_iterator(texts, DUAL_PIECES, show_progress=False)
    merges = json.loads(taught.backend_tokenizer.to_str())["model"]["merges"]
    return with_merges([tuple(merge) for merge in merges])


VLM_PIECES = 1024
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@contextmanager
def tiny_towers(vision: str, llm: str, rows: Sequence[Dialogue | Preference]) -> Iterator[tuple[str, str]]:
    """`vision` and `llm`, where they are "tiny" as folders that live as long as the block.

    The tokenizer is made from the texts of `rows`.
    """
    with tempfile.TemporaryDirectory(prefix="vlmkit-tiny-") as name:
        if vision == TINY:
            vision = f"{name}/vision"
            _vision().save_pretrained(vision)
        if llm == TINY:
            llm = f"{name}/llm"
            tokenizer = _chat_tokenizer(rows)
            tokenizer.save_pretrained(llm)
            _language(tokenizer).save_pretrained(llm)
        yield vision, llm


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )


def _language(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )


def _texts(rows: Sequence[Any]) -> list[str]:
    turns = [turn for row in rows for turn in getattr(row, "turns", ())]
    return [text for turn in turns for text in (turn.user, turn.reply)] + [
        text for row in rows if isinstance(row, Preference) for text in (row.question, row.chosen, row.rejected)
    ]


def _chat_tokenizer(rows: Sequence[Any]) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<system>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VLM_PIECES, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(_texts(rows), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
