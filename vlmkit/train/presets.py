"""The presets of the stages, and the learning rates that suit a model."""

from typing import Any

TINY = "tiny"  # a model, or towers, with new weights
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "contrastive": {
        "debug": {"start": TINY, "batch_size": 16, "steps": 20, "log_every": 1, "save_steps": 5},
        "small": {"start": "ViT-B-32:laion2b_s34b_b79k", "batch_size": 256, "epochs": 5.0},
        "full": {"start": "ViT-B-16", "batch_size": 4096, "accumulate": 16, "epochs": 32.0, "warmup": 0.05},
    },
    "vlm": {
        "debug": {"vision": TINY, "llm": TINY, "batch_size": 8, "steps": 20, "log_every": 1, "save_steps": 5}
        | {"lr": 1e-3, "projector_lr": 1e-3, "image_aspect": "crop"},
        "small": {"vision": "openai/clip-vit-base-patch32", "llm": "HuggingFaceTB/SmolLM2-135M-Instruct"}
        | {"batch_size": 64, "lr": 1e-4, "projector_lr": 1e-3},
        "full": {"vision": "openai/clip-vit-large-patch14-336", "llm": "Qwen/Qwen2.5-0.5B-Instruct"},
    },
}
REGISTERED = {"vision": "efficientnet-lite0", "text": "all-minilm-l6-v2"}
LORA_LR = 2e-4
# A high rate quietly destroys pretrained weights: a third of that of WiSE-FT (Wortsman and others, 2022).
PRETRAINED = {"lr": 1e-5, "weight_decay": 0.1}
FROM_SCRATCH = {"lr": 5e-4, "weight_decay": 0.2}  # OpenCLIP (Cherti and others, 2023)
HEADS = {"lr": 1e-4, "weight_decay": 0.2}  # new heads on pretrained towers
