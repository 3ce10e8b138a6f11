"""What each stage trains, and the low-rank adapters."""

import re
from typing import Any

import torch

from vlmkit.errors import VlmkitError
from vlmkit.models.llava.model import Vlm
from vlmkit.train.config import VlmConfig

# The language model's layers by their full names: the endings alone would match the vision tower's too.
LAYERS = r"model\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"
PROJECTOR = "multi_modal_projector"


def freeze(vlm: Vlm, config: VlmConfig) -> None:
    """Leave to training what the stage trains: the projector, and after align the language model too.

    With `config.lora` adapters take the language model's place. On CUDA what is frozen goes to bfloat16.
    """
    model = vlm.model
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if config.stage != "align" and not config.lora:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    if config.checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.device == "cuda":
        for parameter in model.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)


def lora_config(model: Any, rank: int, dropout: float) -> Any:
    """peft's configuration: adapters of `rank` (Hu and others, 2021), and the projector trained in full.

    Raises VlmkitError where the language model has no such layers.
    """
    from peft import LoraConfig

    if not any(re.fullmatch(LAYERS, name) for name, _ in model.named_modules()):
        raise VlmkitError("this language model has no layers that LoRA knows", "leave --lora out")
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=LAYERS, modules_to_save=[PROJECTOR]
    )


def add_adapters(model: Any, config: VlmConfig) -> Any:
    """`model` with adapters, if `config` asks for them; they alone are trained. It is changed in place."""
    if not config.lora:
        return model
    from peft import get_peft_model

    torch.manual_seed(config.seed)
    return get_peft_model(model, lora_config(model, config.lora, config.dropout))
