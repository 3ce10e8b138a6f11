"""The model card of a trained folder."""

from vlmkit import __version__
from vlmkit.train.contrastive.config import ContrastiveConfig
from vlmkit.train.contrastive.learner import Learner
from vlmkit.train.contrastive.state import State
from vlmkit.train.table import Counts


def model_card(config: ContrastiveConfig, learner: Learner, table: list[Counts], state: State) -> str:
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
