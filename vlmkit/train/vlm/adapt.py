"""What each stage trains, and the low-rank adapters."""

import importlib.util
from typing import Any

import torch

from vlmkit.errors import VlmkitError
from vlmkit.models.vlm import Vlm
from vlmkit.train.vlm.config import VlmConfig

# The language model's layers by their whole names: by their endings alone, the vision tower's would be met too.
LAYERS = r"model\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"


def check_device(config: VlmConfig) -> None:
    """Raises VlmkitError where this machine cannot do what `config` wants."""
    if config.quantize is None:
        return
    if config.quantize != "4bit":
        raise VlmkitError(f"--quantize {config.quantize} is not known", "use 4bit")
    if config.device != "cuda":
        raise VlmkitError("4 bit needs a CUDA device, and there is none", "leave --quantize out, or use --lora alone")
    if not config.lora:
        raise VlmkitError("4-bit weights cannot be trained themselves", "add --lora R: adapters beside them (QLoRA)")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise VlmkitError("4 bit needs the package bitsandbytes", "pip install bitsandbytes")


def freeze(vlm: Vlm, config: VlmConfig) -> Any:
    """Leave to training what the stage trains: the projector, and in later stages the language model too.

    With `config.lora`, adapters of that rank stand for the language model (Hu and others, 2021); they are returned, to
    be merged at the end. On CUDA what is frozen goes to bfloat16.
    """
    model = vlm.model
    model.requires_grad_(False)
    adapter = None
    if config.stage != "align" and config.lora:
        adapter = _adapters(model, config)
    elif config.stage != "align":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    model.model.multi_modal_projector.requires_grad_(True)
    if config.checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.device == "cuda":
        for parameter in model.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    return adapter


def _adapters(model: Any, config: VlmConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    lora = LoraConfig(r=config.lora, lora_alpha=2 * config.lora, lora_dropout=config.dropout, target_modules=LAYERS)
    try:
        return get_peft_model(model, lora)
    except ValueError:
        raise VlmkitError("this language model has no layers that LoRA knows", "leave --lora out") from None


def merged(vlm: Vlm, adapter: Any) -> Vlm:
    """`vlm` with the adapters in its weights."""
    return vlm if adapter is None else Vlm(adapter.merge_and_unload(), vlm.processor)
