"""Small models of families with a chat template, of random weights, as their own libraries save them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from families import byte_pairs, saved
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GenerationConfig,
    GPT2TokenizerFast,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = LAYERS | {"num_key_value_heads": 2, "max_position_embeddings": 512}
TOWER = LAYERS | {"image_size": 48, "patch_size": 16}
QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}


def template(mark: str) -> str:
    """The form of a conversation in which `mark` stands for a picture."""
    return TEMPLATE.replace("IMAGE", mark)


def words(*marks: str, **named: str) -> Any:
    """A tokenizer; `named` are the marks that it knows by an attribute."""
    known = ["<pad>", "<|im_start|>", "<|im_end|>", *marks, *named.values()]
    made = byte_pairs(GPT2TokenizerFast, known, pad_token="<pad>", eos_token="<|im_end|>", extra_special_tokens=named)
    made.add_special_tokens({"additional_special_tokens": known[1:]}, replace_extra_special_tokens=False)
    return made


def text_of(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    """The configuration of a language model on `tokenizer`."""
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return TEXT | {"vocab_size": len(tokenizer)} | ids | settings


def written(kind: Any, config: Any, processor: Any, folder: Path, seed: int = 0) -> Path:
    """The folder of a fresh model of the class `kind`."""
    torch.manual_seed(seed)
    model = kind(config)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return saved(model, processor, folder)


def llava_next(folder: Path) -> Path:
    tokenizer = words(image_token="<image>")
    grid = [[48, 96], [96, 48], [96, 96]]
    shown = LlavaNextImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(shown, tokenizer, 16, "default", template("<image>"), num_additional_image_tokens=1)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(**text_of(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_select_strategy="default",
    )
    return written(LlavaNextForConditionalGeneration, config, processor, folder)


def smolvlm(folder: Path) -> Path:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    named = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
    named |= {"end_of_utterance_token": "<end_of_utterance>", "global_image_token": "<global-img>"}
    tokenizer = words(*places, **named)
    sizes = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes), tokenizer, SmolVLMVideoProcessor(**sizes), 4, template("<image>")
    )
    config = SmolVLMConfig(
        vision_config=LAYERS | {"image_size": 64, "patch_size": 16},
        text_config=LlamaConfig(**text_of(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return written(SmolVLMForConditionalGeneration, config, processor, folder)


def qwen(kinds: tuple[Any, Any, Any], folder: Path, patch: int, video: Any, **vision: Any) -> Path:
    """One of the Qwen-VL family: its model, configuration and processor."""
    model, settings, processor = kinds
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    named |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    boxes = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]
    tokenizer = words(*boxes, **named)
    area = (4 * patch * patch, 64 * patch * patch)
    shown = Qwen2VLImageProcessor(min_pixels=area[0], max_pixels=area[1], patch_size=patch, merge_size=2)
    made = processor(
        shown,
        tokenizer,
        video(patch_size=patch, merge_size=2),
        template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in (
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    )}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = text_of(tokenizer, rope_parameters=rope, head_dim=8)
    tower = QWEN_TOWER | {"patch_size": patch} | vision
    return written(model, settings(text_config=text, vision_config=tower, **ids), made, folder)


def qwen2_vl(folder: Path) -> Path:
    kinds = Qwen2VLForConditionalGeneration, Qwen2VLConfig, Qwen2VLProcessor
    return qwen(kinds, folder, 14, Qwen2VLVideoProcessor, embed_dim=32, hidden_size=32, mlp_ratio=2)


def qwen2_5_vl(folder: Path) -> Path:
    kinds = Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, Qwen2_5_VLProcessor
    sizes = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "window_size": 56}
    return qwen(kinds, folder, 14, Qwen2VLVideoProcessor, fullatt_block_indexes=[1], **sizes)


def qwen3_vl(folder: Path) -> Path:
    kinds = Qwen3VLForConditionalGeneration, Qwen3VLConfig, Qwen3VLProcessor
    sizes = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 64}
    return qwen(kinds, folder, 16, Qwen3VLVideoProcessor, deepstack_visual_indexes=[0], **sizes)


def gemma3(folder: Path) -> Path:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = words(**named)
    shown = Gemma3ImageProcessor(size={"height": 64, "width": 64})
    processor = Gemma3Processor(shown, tokenizer, template("<start_of_image>"), image_seq_length=4)
    config = Gemma3Config(
        text_config=text_of(tokenizer, head_dim=8, sliding_window=64),
        vision_config=LAYERS | {"image_size": 64, "patch_size": 16},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    return written(Gemma3ForConditionalGeneration, config, processor, folder)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    made.__name__: made for made in (llava_next, smolvlm, qwen2_vl, qwen2_5_vl, qwen3_vl, gemma3)
}
