"""The model card of a trained folder."""

from typing import Any

from vlmkit import __version__
from vlmkit.models.vlm import Vlm
from vlmkit.train.vlm.config import VlmConfig


def model_card(vlm: Vlm, config: VlmConfig, history: list[dict[str, Any]]) -> str:
    """Data, recipe and figures, in the form of the Hugging Face hub."""
    losses = [entry for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    native = vlm.connector == "mlp" and not vlm.vision.model_type.startswith("vlmkit")
    opens = (
        "Opens with `AutoModelForImageTextToText.from_pretrained` of transformers."
        if native
        else "**Not native**: opens after `import vlmkit.models.vlm`, its connector or tower is vlmkit's own."
    )
    figures = f"- training loss {losses[0]['loss']:.4f} at step {losses[0]['step']}, " if losses else ""
    figures += f"{losses[-1]['loss']:.4f} at step {losses[-1]['step']}\n" if losses else ""
    figures += f"- least validation loss {min(validation):.4f}\n" if validation else ""
    data = "".join(f"- {name}\n" for name in config.data)
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [vlmkit, llava]
---

# {config.out.name}

Made by `vlmkit train {config.stage}`, version {__version__}. {opens}

| | |
|---|---|
| vision tower | {config.vision or config.start or "tiny"} |
| language model | {config.llm or config.start or "tiny"} |
| connector | {vlm.connector} |
| image tokens | {vlm.image_tokens} |

## Data

{data}
## Recipe

All settings stand in `train.toml`; `vlmkit train {config.stage} --config train.toml -o NEW` repeats the run.

## Figures

{figures}
"""
