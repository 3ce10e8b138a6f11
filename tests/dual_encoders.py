"""Small dual encoders of random weights, each in the form in which its library saves them."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.push_to_hf_hub import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-"]
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}


def letters(first: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of single letters that keeps their case; `first` are padding, end and unknown."""
    vocabulary = {token: number for number, token in enumerate([*first, *LETTERS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=first[2]))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=first[0],
        eos_token=first[1],
        unk_token=first[2],
        model_input_names=["input_ids"],
    )


def open_clip_quick_gelu(folder: Path) -> Path:
    """A CLIP with QuickGELU and open_clip's own tokenizer; the shortest side is resized, the middle cut out."""
    vision = {"image_size": 48, "layers": 2, "width": 128, "patch_size": 16, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2}
    return _open_clip(folder, {"embed_dim": 64, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}, {})


def open_clip_siglip(folder: Path) -> Path:
    """A SigLIP of open_clip: pictures squashed, texts canonicalized and padded, a bias beside the logit scale."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": 64, "vocab_size": 80, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True}
    text |= {"pool_type": "last", "hf_tokenizer_name": "org/name", "tokenizer_kwargs": {"clean": "canonicalize"}}
    config = {"embed_dim": 32, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    return _open_clip(folder, config, preprocess)


def _open_clip(folder: Path, config: dict, preprocess: dict) -> Path:
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    model = _livelier(open_clip.create_model(f"local-dir:{folder}"))
    save_for_hf(model, letters(["<pad>", "</s>", "<unk>"]), config, str(folder), safe_serialization=True)
    return folder


def clip(folder: Path) -> Path:
    """A CLIP of transformers, QuickGELU, with byte pairs that have no merges."""
    from open_clip.tokenizer import bytes_to_unicode

    byte = list(bytes_to_unicode().values())
    marks = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: n for n, token in enumerate([*byte, *(b + "</w>" for b in byte), *marks])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    end = len(vocabulary) - 1
    text = {"vocab_size": len(vocabulary), "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end, **LAYERS}
    config = CLIPConfig(
        text_config=text, vision_config={"image_size": 48, "patch_size": 16, **LAYERS}, projection_dim=24
    )
    images = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    torch.manual_seed(0)
    return _saved(folder, CLIPModel(config), CLIPProcessor(images, tokenizer))


def siglip(folder: Path) -> Path:
    """A SigLIP of transformers: pictures squashed, texts padded to 64."""
    text = {"vocab_size": 80, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 1, **LAYERS}
    config = SiglipConfig(text_config=text, vision_config={"image_size": 32, "patch_size": 16, **LAYERS})
    images = SiglipImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    torch.manual_seed(0)
    return _saved(folder, SiglipModel(config), SiglipProcessor(images, letters(["</s>", "<eos>", "<unk>"])))


def siglip2(folder: Path) -> Path:
    """A SigLIP 2 that keeps the proportions of pictures (NaFlex), with the tokenizer that lowers case."""
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    vocabulary = {token: n for n, token in enumerate([*first, *LETTERS, *(f"<0x{n:02X}>" for n in range(256))])}
    tokenizer = Siglip2Tokenizer(vocab=vocabulary, merges=[], padding_side="right", model_input_names=["input_ids"])
    text = {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 1,
        **LAYERS,
    }
    config = Siglip2Config(text_config=text, vision_config={"num_patches": 16, "patch_size": 16, **LAYERS})
    images = Siglip2ImageProcessor(patch_size=16, max_num_patches=12)
    torch.manual_seed(0)
    return _saved(folder, Siglip2Model(config), Siglip2Processor(images, tokenizer))


def _livelier(model: torch.nn.Module) -> torch.nn.Module:
    """Larger weights than random ones start with, so that activations and different inputs tell."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.mul_(3.0 if name.endswith(("c_fc.weight", "fc1.weight")) else 1.5)
    return model


def _saved(folder: Path, model: torch.nn.Module, processor: object) -> Path:
    _livelier(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
