"""The model card of a trained folder, in the form of the Hugging Face hub: data, recipe and results."""

from typing import Any

from vlmkit import __version__
from vlmkit.models.llava.model import Vlm
from vlmkit.train.config import ContrastiveConfig, TrainConfig, VlmConfig
from vlmkit.train.data.report import Counts

CARD = """---
{front}
---

# {name}

Made by `vlmkit train {stage}`, version {version}{how}

## Data

{data}

## Recipe

All settings stand in `train.toml`; `vlmkit train {stage} --config train.toml -o NEW` repeats the run.

## Results

{results}
"""


def contrastive_card(config: ContrastiveConfig, table: list[Counts], history: list[dict[str, Any]], kept: int) -> str:
    """The card of a dual encoder, with the retrieval before the first step and of the weights of the step `kept`."""
    results = [
        f"validation at step {entry['step']}: R@1 {entry['text_to_image_r1']:.3f} text to image, "
        f"{entry['image_to_text_r1']:.3f} image to text, mean recall {entry['mean_recall']:.3f}, gap {entry['gap']:.3f}"
        for entry in history
        if "mean_recall" in entry and entry["step"] in (0, kept)
    ]
    data = [f"{row.name}: {row.kept} rows of {row.read}" for row in table]
    how = f", from {config.start or f'{config.vision} and {config.text}'}; `vlmkit embed -m DIR` opens it."
    front = "pipeline_tag: zero-shot-image-classification\ntags: [vlmkit, clip]"
    return _card(config, front, how, data, history, results)


def vlm_card(vlm: Vlm, config: VlmConfig, history: list[dict[str, Any]]) -> str:
    """The card of a vision-language model: how to open it, and its parts."""
    native = vlm.connector == "mlp" and not vlm.vision.model_type.startswith("vlmkit")
    opens = (
        "Opens with `AutoModelForImageTextToText.from_pretrained` of transformers."
        if native
        else "**Not native**: opens after `import vlmkit.models.llava.model`, its connector or tower is vlmkit's own."
    )
    how = f""". {opens}

| | |
|---|---|
| vision tower | {config.vision or config.start or "tiny"} |
| language model | {config.llm or config.start or "tiny"} |
| connector | {vlm.connector} |
| image tokens | {vlm.image_tokens} |"""
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    results = [f"least validation loss {min(validation):.4f}"] if validation else []
    front = "library_name: transformers\npipeline_tag: image-text-to-text\ntags: [vlmkit, llava]"
    return _card(config, front, how, config.data, history, results)


def qformer_card(config: VlmConfig, kind: str, opens: str, history: list[dict[str, Any]]) -> str:
    """The card of a model of the type `kind` whose Q-Former was trained; the class `opens` opens it."""
    adapted = f", and the language model by adapters of rank {config.lora}, merged" if config.lora else ""
    how = f""", from {config.start}. Opens with `{opens}` of transformers.

Trained: queries, Q-Former and language projection{adapted}; all else is as it was.

| | |
|---|---|
| model | {kind} |"""
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    results = [f"least validation loss {min(validation):.4f}"] if validation else []
    front = "library_name: transformers\npipeline_tag: image-text-to-text\ntags: [vlmkit, blip-2]"
    return _card(config, front, how, config.data, history, results)


def _card(
    config: TrainConfig, front: str, how: str, data: list[str], history: list[dict[str, Any]], results: list[str]
) -> str:
    losses = [entry for entry in history if "loss" in entry]
    ends = dict.fromkeys((entry["step"], entry["loss"]) for entry in (*losses[:1], *losses[-1:]))
    results = [f"training loss {loss:.4f} at step {step}" for step, loss in ends] + results
    lists = {"data": "\n".join(f"- {line}" for line in data), "results": "\n".join(f"- {line}" for line in results)}
    return CARD.format(front=front, name=config.out.name, stage=config.stage, version=__version__, how=how, **lists)
