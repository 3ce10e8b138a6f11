"""Recipes by stage and name. What they leave out has the default of `VlmConfig`."""

from typing import Any

from vlmkit.errors import VlmkitError

# LLaVA-1.5 (Liu and others, 2023, table 9); TinyLLaVA (Zhou and others, 2024) for the small language models.
STAGES: dict[str, dict[str, Any]] = {
    "align": {"batch_size": 256, "projector_lr": 1e-3},
    "instruct": {"batch_size": 128, "projector_lr": 2e-5, "lr": 2e-5, "aspect": "pad"},
    "prefer": {"batch_size": 32, "projector_lr": 5e-7, "lr": 5e-7, "warmup": 0.1},
}
LORA_LR = 2e-4
PRESETS: dict[str, dict[str, Any]] = {
    "debug": {
        "vision": "tiny",
        "llm": "tiny",
        "batch_size": 8,
        "steps": 20,
        "lr": 1e-3,
        "projector_lr": 1e-3,
        "log_every": 1,
        "save_steps": 5,
        "aspect": "crop",
    },
    "small": {
        "vision": "openai/clip-vit-base-patch32",
        "llm": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "batch_size": 64,
        "lr": 1e-4,
        "projector_lr": 1e-3,
    },
    "full": {"vision": "openai/clip-vit-large-patch14-336", "llm": "Qwen/Qwen2.5-0.5B-Instruct"},
}


def preset_of(stage: str, name: str | None, begun: bool, lora: bool) -> dict[str, Any]:
    """The settings of `stage` with the preset `name`; a run that has `begun` (--from) brings its own towers."""
    if name is not None and name not in PRESETS:
        raise VlmkitError(f"unknown preset {name}", f"use {', '.join(PRESETS)}")
    settings = STAGES[stage] | (PRESETS[name] if name else {}) | {"stage": stage}
    if lora and name != "debug":
        settings["lr"] = LORA_LR
    if begun:
        settings = {key: value for key, value in settings.items() if key not in ("vision", "llm")}
    return settings
