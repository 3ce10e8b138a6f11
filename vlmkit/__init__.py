"""Composable Unix commands for pictures and language, and what they are made of.

    import vlmkit

    vectors = vlmkit.embed_images(["a.jpg", "b.jpg"])  # (2, D) float32
    hits = vlmkit.Index.open("photos.index").search("a red car", k=5)

Nothing heavy is imported before a function is used; vlmkit-python(7) shows each.
"""

import os

# No library may report what is done with it unless the user asks for that; each reads this before its import.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # else ONNX Runtime keeps a device id and looks its collector up
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
}.items():
    os.environ.setdefault(_name, _value)

TYPE_CHECKING = False  # true for type checkers; importing typing takes longer than all else here
if TYPE_CHECKING:
    from vlmkit import metrics
    from vlmkit.api import (
        Index,
        VlmkitError,
        ask_images,
        caption_images,
        embed_images,
        embed_texts,
        load_chat_model,
        load_embedder,
    )

__version__ = "0.2.0"
__all__ = [
    "Index",
    "VlmkitError",
    "ask_images",
    "caption_images",
    "embed_images",
    "embed_texts",
    "load_chat_model",
    "load_embedder",
    "metrics",
]


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "metrics":
        return importlib.import_module("vlmkit.metrics")
    return getattr(importlib.import_module("vlmkit.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
