"""Small vision-language models with random weights, put together and saved as `vlmkit train` does it."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig

from vlmkit.models.llava.model import Vlm, build, save
from vlmkit.recipes.mini.tokenizer import language_model

SAID = """the red dog and the blue man are on the boat in the water
what color is the car? how many people are there, 2 or 3? is it red? yes, no
a child's hat, two men at the shop. this is what changed with it
"""
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2}


def tiny_llava(folder: Path, seed: int = 0, vision: str = "mini", **text: Any) -> Vlm:
    """A LLaVA on mini's image tower or another one, its folder written. `text` are settings of its LlamaConfig."""
    with tempfile.TemporaryDirectory() as temporary:
        llm = language_model(Path(temporary), SAID.splitlines() * 3, 90, 64, 3)
        settings = json.loads((llm / "config.json").read_text())
        (llm / "config.json").write_text(json.dumps(settings | TEXT | text))
        torch.manual_seed(seed)
        vlm = build(vision, str(llm), "mlp")
    model = vlm.model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_tokens" not in name and "vision_tower" not in name:
                parameter.mul_(10)  # so that pictures and words make a difference
        table, end = model.get_output_embeddings().weight, model.generation_config.eos_token_id
        table[end] = torch.randn_like(table[end]) / 30  # fresh it is zero, being the padding too; so that replies end
    save(vlm, folder)
    (folder / "train.toml").write_text('stage = "instruct"\n')
    return vlm


def clip_tower(folder: Path) -> str:
    """A CLIP vision tower with 9 places a picture, its configuration alone."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionConfig(**sizes, image_size=48, patch_size=16).save_pretrained(folder)
    return str(folder)
