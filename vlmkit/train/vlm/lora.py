"""What each stage trains, and the low-rank adapters."""

import re
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import warn
from vlmkit.models.llava.connectors import tower_features
from vlmkit.models.llava.model import Vlm
from vlmkit.train.config import VlmConfig

LANGUAGE_MODEL = "model.language_model."
ADAPTABLE = (nn.Linear, Conv1D)  # what peft has adapters for
PROJECTOR = "multi_modal_projector"
TOWER = "vision_tower"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def freeze(vlm: Vlm, config: VlmConfig) -> None:
    """Leave to training what the stage trains: the projector, after align the language model, and what is asked for of
    the vision tower.

    With `config.lora` adapters take the language model's place. What is frozen goes to the precision of the run; beside
    4-bit weights the language model's norms, embeddings and head stay in float32, as peft prepares it.
    """
    model = vlm.model
    if config.quantize:
        from peft import prepare_model_for_kbit_training

        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if config.stage != "align" and not config.lora:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    if config.train_vision:
        unfreeze_tower(vlm)
    if config.checkpointing:
        for part in (model.model.language_model, *([model.model.vision_tower] if config.train_vision else [])):
            part.gradient_checkpointing_enable({"use_reentrant": False})
    if (precision := config.computes_in()) != "fp32":
        for name, parameter in model.named_parameters():
            stays = parameter.requires_grad or (config.quantize and name.startswith((LANGUAGE_MODEL, "lm_head.")))
            if not stays and parameter.is_floating_point():
                parameter.data = parameter.data.to(DTYPES[precision])


def unfreeze_tower(vlm: Vlm) -> None:
    """Train what the features depend on of the vision tower: not its last layers, where an earlier one is taken.

    Raises VlmkitError where there is nothing.
    """
    inner: Any = vlm.model.model
    side = vlm.vision.image_size
    weights = [weight for weight in inner.vision_tower.parameters() if weight.is_floating_point()]
    if not weights:
        raise VlmkitError(f"the tower {vlm.vision.model_type} has nothing to train", "leave --train-vision out")
    inner.vision_tower.requires_grad_(True)
    blank = torch.zeros(1, 3, side, side, dtype=weights[0].dtype, device=weights[0].device)
    found = torch.autograd.grad(tower_features(inner, blank).sum(), weights, allow_unused=True)
    for weight, gradient in zip(weights, found, strict=True):
        weight.requires_grad_(gradient is not None)


def adapted_layers(model: Any) -> tuple[list[str], list[str]]:
    """(full names of the language model's linear layers, names of its other matrices, which stay as they are).

    Embeddings are neither. Layers of experts may hold all their matrices in one tensor, without a layer for each.
    """
    modules = dict(model.named_modules())
    inside = {name: module for name, module in modules.items() if name.startswith(LANGUAGE_MODEL)}
    layers = [name for name, module in inside.items() if isinstance(module, ADAPTABLE)]
    others = [
        f"{name}.{parameter}"
        for name, module in inside.items()
        if not isinstance(module, (*ADAPTABLE, nn.Embedding))
        for parameter, value in module.named_parameters(recurse=False)
        if value.ndim > 1
    ]
    return layers, others


def warn_of_unadapted(model: Any) -> None:
    """Name the matrices of the language model that get no adapters."""
    _, others = adapted_layers(model)
    if others:
        kinds = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in others))
        warn(f"--lora leaves out {kinds}: train without --lora to train all")


def lora_config(model: Any, rank: int, dropout: float) -> Any:
    """peft's configuration: adapters of `rank` (Hu and others, 2021) on the language model's linear layers, and the
    projector trained in full.

    Raises VlmkitError where the language model has no such layers.
    """
    from peft import LoraConfig

    layers, _ = adapted_layers(model)
    if not layers:
        raise VlmkitError("this language model has no layers that LoRA knows", "leave --lora out")
    # By full names: the endings alone would match the vision tower's layers too.
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=layers, modules_to_save=[PROJECTOR]
    )


def add_adapters(model: Any, config: VlmConfig) -> Any:
    """`model` with adapters, if `config` asks for them; they alone are trained. It is changed in place."""
    if not config.lora:
        return model
    from peft import get_peft_model

    torch.manual_seed(config.seed)
    return get_peft_model(model, lora_config(model, config.lora, config.dropout))
