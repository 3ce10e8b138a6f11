"""Small models of random weights, written by the classes of transformers and timm."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    GenerationConfig,
    GPT2TokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils.logging import disable_progress_bar

SAID = "the red dog and blue man are on boat in water what color is car how many people yes no a child two shop"
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a an on the is it of what which color how many red green blue black white"
WORDS += " yellow circle box pink ? , . :"
LAYERS: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path) -> None:
    """All models, in folders of `folder`."""
    disable_progress_bar()
    for make in (clip, qwen, blip, towers):
        torch.manual_seed(0)
        make(folder / make.__name__)


def clip(folder: Path) -> None:
    """A dual encoder, with byte pairs that have no merges."""
    pieces = list(bytes_to_unicode().values())
    marks = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: n for n, token in enumerate([*pieces, *(b + "</w>" for b in pieces), *marks])}
    end = len(vocabulary) - 1
    text = LAYERS | {"vocab_size": end + 1, "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
    vision = LAYERS | {"image_size": 48, "patch_size": 16}
    images = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    save(CLIPModel(config), CLIPProcessor(images, CLIPTokenizer(vocab=vocabulary, merges=[])), folder, 2)


def qwen(folder: Path) -> None:
    """A vision-language model with a chat template that knows boxes."""
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    named |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    marks = ["<pad>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
    marks += ["<|box_start|>", "<|box_end|>", *named.values()]
    letters = map(chr, range(33, 127))
    pieces = dict.fromkeys([*marks, "Ġ", "Ċ", *letters, *(f"Ġ{word}" for word in SAID.split())])
    ends = {"pad_token": "<pad>", "eos_token": "<|im_end|>"}
    words = GPT2TokenizerFast(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], extra_special_tokens=named, **ends
    )
    words.add_special_tokens({"additional_special_tokens": marks[1:]}, replace_extra_special_tokens=False)
    shown = Qwen2VLImageProcessor(min_pixels=784, max_pixels=12544, patch_size=14, merge_size=2)
    processor = Qwen2_5_VLProcessor(shown, words, Qwen2VLVideoProcessor(patch_size=14, merge_size=2), TEMPLATE)
    text = LAYERS | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8}
    text |= {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
    text |= {"bos_token_id": None}
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "window_size": 56}
    vision |= {"fullatt_block_indexes": [1]}
    ids = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    ids |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    known = {name: words.convert_tokens_to_ids(mark) for name, mark in ids.items()}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **known))
    model.generation_config = GenerationConfig(eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    save(model, processor, folder, 8)


def blip(folder: Path) -> None:
    """A captioner without a chat template."""
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789?,.:'")
    pieces = dict.fromkeys([*WORDS.split(), *letters, *(f"##{letter}" for letter in letters)])
    words = BertTokenizerFast(vocab={word: number for number, word in enumerate(pieces)})
    text = LAYERS | {"vocab_size": len(words) + 2, "bos_token_id": len(words), "sep_token_id": 3, "pad_token_id": 0}
    vision = LAYERS | {"image_size": 48, "patch_size": 16, "initializer_range": 0.2}
    config = BlipConfig(text_config=text | {"max_position_embeddings": 32}, vision_config=vision)
    images = BlipImageProcessor(size={"height": 48, "width": 48})
    save(BlipForConditionalGeneration(config), BlipProcessor(images, words), folder, 8)


def towers(folder: Path) -> None:
    """An image tower of timm and a text tower of transformers, for contrastive training."""
    folder.mkdir(parents=True)
    image = timm.create_model("test_efficientnet", pretrained=False)
    save_for_hf(image, folder / "image", safe_serialization=True)
    words = BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS.split())})
    text = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **LAYERS))
    save(text, words, folder / "text", 1)


def save(model: Any, beside: Any, folder: Path, factor: float) -> None:
    """Write the folder, with weights so large that pictures and words make a difference."""
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.mul_(factor)
    model.save_pretrained(folder)
    beside.save_pretrained(folder)
