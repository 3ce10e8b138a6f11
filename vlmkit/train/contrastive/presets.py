"""Recipes by name, and the rates that suit what is trained. What they leave out has the default of the config."""

from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.train.contrastive.config import ContrastiveConfig, LitConfig
from vlmkit.train.contrastive.fresh import TINY, is_new

# A high rate destroys learned weights unseen: a third of that of WiSE-FT (Wortsman and others, 2022).
LEARNED = {"lr": 1e-5, "weight_decay": 0.1}
NEW = {"lr": 5e-4, "weight_decay": 0.2}  # OpenCLIP (Cherti and others, 2023)
HEADS = {"lr": 1e-4, "weight_decay": 0.2}  # new heads on learned towers
PRESETS: dict[str, dict[str, Any]] = {
    "debug": {"start": TINY, "batch_size": 16, "steps": 20, "log_every": 1, "save_steps": 5},
    "small": {"start": "ViT-B-32:laion2b_s34b_b79k", "batch_size": 256, "epochs": 5.0},
    "full": {"start": "ViT-B-16", "batch_size": 4096, "accumulate": 16, "epochs": 32.0, "warmup": 0.05},
}
LOSSES, LOCKS = ("infonce", "siglip"), ("image", "text", "none")
REGISTERED = {"vision": "efficientnet-lite0", "text": "all-minilm-l6-v2"}


def recipe_of(preset: str | None, told: dict[str, Any]) -> tuple[type[ContrastiveConfig], dict[str, Any]]:
    """The kind of run, and its settings, where flags and file have `told` theirs. Raises VlmkitError."""
    if preset is not None and preset not in PRESETS:
        raise VlmkitError(f"unknown preset {preset}", f"use {', '.join(PRESETS)}")
    settings = dict(PRESETS[preset]) if preset else {}
    for name, choices in (("loss", LOSSES), ("lock", LOCKS)):
        if told.get(name, choices[0]) not in choices:
            raise VlmkitError(f"unknown --{name} {told[name]}", f"use {', '.join(choices)}")
    towers = [name for name in REGISTERED if name in told]
    if towers and "start" in told:
        raise VlmkitError(f"{told['start']} brings its own towers", f"leave --{towers[0]} out, or --from")
    if towers or not (preset or "start" in told):
        settings = REGISTERED | {key: value for key, value in settings.items() if key != "start"}
        if told.get("lock", "image") == "image":
            return LitConfig, settings
        return ContrastiveConfig, HEADS | settings
    start = (settings | told)["start"]
    rates = {"lr": 1e-3, "weight_decay": 0.2} if start == TINY else NEW if is_new(start) else LEARNED
    return ContrastiveConfig, rates | settings
