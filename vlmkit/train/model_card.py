"""The model card of a trained folder.

The model card of a trained folder.
"""

from typing import Any

from vlmkit import __version__
from vlmkit.models.llava.model import Vlm
from vlmkit.train.checkpoints import State
from vlmkit.train.config import ContrastiveConfig, VlmConfig
from vlmkit.train.contrastive.model import Learner
from vlmkit.train.data.report import Counts


def contrastive_card(config: ContrastiveConfig, learner: Learner, table: list[Counts], state: State) -> str:
    """Data, recipe and figures, in the form of the Hugging Face hub."""
    losses = [entry for entry in state.history if "loss" in entry]
    last = state.best_step if config.best and state.best_step else state.step
    validations = [entry for entry in state.history if "mean_recall" in entry and entry["step"] in (0, last)]
    model = config.start or f"{config.vision} and {config.text}"
    data = "".join(f"- {row.name}: {row.kept} rows of {row.read}\n" for row in table)
    figures = [f"- training loss {entry['loss']:.4f} at step {entry['step']}\n" for entry in _ends(losses)]
    figures += [
        f"- validation at step {entry['step']}: R@1 {entry['text_to_image_r1']:.3f} text to image, "
        f"{entry['image_to_text_r1']:.3f} image to text, mean recall {entry['mean_recall']:.3f}, "
        f"gap {entry['gap']:.3f}\n"
        for entry in validations
    ]
    return f"""---
pipeline_tag: zero-shot-image-classification
tags: [vlmkit, clip]
---

# {config.out.name}

Made by `vlmkit train contrastive`, version {__version__}, from {model}; `vlmkit embed -m DIR` opens it.

## Data

{data}
## Recipe

All settings stand in `train.toml`; `vlmkit train contrastive --config train.toml -o NEW` repeats the run.

## Figures

{"".join(figures)}"""


def _ends(entries: list[dict]) -> list[dict]:
    return entries if len(entries) < 2 else [entries[0], entries[-1]]


def vlm_card(vlm: Vlm, config: VlmConfig, history: list[dict[str, Any]]) -> str:
    """Data, recipe and figures, in the form of the Hugging Face hub."""
    losses = [entry for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    native = vlm.connector == "mlp" and not vlm.vision.model_type.startswith("vlmkit")
    opens = (
        "Opens with `AutoModelForImageTextToText.from_pretrained` of transformers."
        if native
        else "**Not native**: opens after `import vlmkit.models.llava.model`, its connector or tower is vlmkit's own."
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
