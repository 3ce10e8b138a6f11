"""New models that training begins with: tiny ones, architectures by name, configurations, two joined towers.

Each is in a folder that exists as long as a `with` block; its weights are drawn from torch's generator.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
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

from vlmkit.errors import VlmkitError, reason_of
from vlmkit.models.resolve import OPEN_CLIP_CONFIG
from vlmkit.train.contrastive.two_towers import build
from vlmkit.train.contrastive.two_towers import save as save_towers
from vlmkit.train.data.samples import Captioned, Dialogue, Preference
from vlmkit.train.presets import TINY

VOCABULARY = 1024  # tokens, at most
CONTEXT = 32  # tokens of a caption
SIDE = 64  # pixels
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 128}
VISION: dict[str, Any] = {"image_size": SIDE, "patch_size": 16, **SIZES}
CLIP_TOKENS = ["<|startoftext|>", "<|endoftext|>"]
CHAT_TOKENS = ["<s>", "</s>", "<system>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@contextmanager
def new_model(start: str, samples: Sequence[Captioned]) -> Iterator[str]:
    """A folder with the dual encoder `start`, which `is_from_scratch`, and its initial weights.

    Raises VlmkitError where the configuration makes no model.
    """
    with tempfile.TemporaryDirectory(prefix="vlmkit-new-") as name:
        made = Path(name)
        try:
            if start == TINY:
                _tiny_clip(made, (caption for sample in samples for caption in sample.captions))
            elif (folder := Path(start.removeprefix("local-dir:"))).is_dir():
                shutil.copytree(folder, made, dirs_exist_ok=True)
                _add_weights(made)
            else:
                settings = {"model_cfg": open_clip.get_model_config(start), "preprocess_cfg": {}}
                (made / OPEN_CLIP_CONFIG).write_text(json.dumps(settings))
                _add_weights(made)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:  # of the libraries
            reason = reason_of(error)
            raise VlmkitError(f"no model can be made of {start} ({reason})", "check its configuration") from None
        yield name


@contextmanager
def joined_towers(vision: str, text: str, dim: int) -> Iterator[str]:
    """A folder with one model of two pretrained towers and new heads."""
    with tempfile.TemporaryDirectory(prefix="vlmkit-new-") as name:
        model, description = build(vision, text, dim, dropout=0.0)
        save_towers(model, description, text, Path(name), Path(name))
        yield name


@contextmanager
def tiny_towers(vision: str, llm: str, rows: Sequence[Dialogue | Preference]) -> Iterator[tuple[str, str]]:
    """`vision` and `llm`; for "tiny" a folder with a configuration, and a tokenizer for the texts of `rows`."""
    with tempfile.TemporaryDirectory(prefix="vlmkit-tiny-") as name:
        if vision == TINY:
            vision = f"{name}/vision"
            CLIPVisionConfig(**VISION).save_pretrained(vision)
        if llm == TINY:
            llm = f"{name}/llm"
            tokenizer = _chat_tokenizer(text for row in rows for text in _texts(row))
            tokenizer.save_pretrained(llm)
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                tie_word_embeddings=True,
            ).save_pretrained(llm)
        yield vision, llm


def _add_weights(folder: Path) -> None:
    """Add initial weights to a folder that has only a configuration."""
    file = folder / OPEN_CLIP_CONFIG
    if not file.is_file():
        _save(AutoModel.from_config(AutoConfig.from_pretrained(folder)), folder)
        return
    settings = json.loads(file.read_text())
    if (folder / "config.json").is_file():
        settings["model_cfg"]["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
        file.write_text(json.dumps(settings))
    _save(open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False), folder)


def _save(model: nn.Module, folder: Path) -> None:
    """Add the weights of `model`, in every process; `save_pretrained` of transformers writes in the first alone."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _tiny_clip(folder: Path, texts: Iterable[str]) -> None:
    tokenizer = _clip_tokenizer(texts)
    start, end = (tokenizer.get_vocab()[token] for token in CLIP_TOKENS)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, **SIZES}
    text |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=64)
    config.save_pretrained(folder)
    _save(CLIPModel(config), folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


def _clip_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with the merges of `texts` and all bytes, so that nothing is unknown."""
    letters = sorted(ByteLevel.alphabet())
    letters += [f"{letter}</w>" for letter in letters]

    def with_merges(merges: list[Any]) -> CLIPTokenizer:
        pieces = [*letters, *("".join(merge) for merge in merges), *CLIP_TOKENS]
        vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)

    trained: Any = with_merges([]).train_new_from_iterator(texts, VOCABULARY, show_progress=False)
    merges = json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]
    return with_merges([tuple(merge) for merge in merges])


def _chat_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    options: dict[str, Any] = {
        "special_tokens": CHAT_TOKENS,
        "initial_alphabet": ByteLevel.alphabet(),
        "show_progress": False,
    }
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, **options))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _texts(row: Dialogue | Preference) -> list[str]:
    if isinstance(row, Preference):
        return [row.question, row.chosen, row.rejected]
    return [text for turn in row.turns for text in (turn.user, turn.reply)]
