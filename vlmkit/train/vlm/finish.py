"""The end of a run: a standard folder that transformers 5 and 4.57 open."""

import json
from pathlib import Path
from typing import Any

from vlmkit.models.vlm import TOWERS, Vlm
from vlmkit.train.folder import finishing
from vlmkit.train.plot import plot_losses
from vlmkit.train.vlm.card import model_card
from vlmkit.train.vlm.config import VlmConfig


def finish(vlm: Vlm, config: VlmConfig, history: list[dict[str, Any]]) -> None:
    """Write the model into `config.out`. Raises VlmkitError where there is no room for it."""
    with finishing(config) as made:
        save(vlm, made)
        plot_losses(history, made / "loss.png")
        (made / "README.md").write_text(model_card(vlm, config, history))


def save(vlm: Vlm, folder: Path) -> None:
    """Weights under the names that both versions read, configuration, processor, template, generation settings.

    transformers 5 calls a tower's weights `vision_tower.embeddings...`, 4.57 `vision_tower.vision_model...`, and
    starts from a random tower where it does not find them. 5 reads both.
    """
    model = vlm.model
    kept = model.generation_config
    kept.do_sample, kept.temperature, kept.top_p, kept.top_k = False, None, None, None
    weights = model.state_dict()
    if vlm.vision.model_type in TOWERS:
        weights = {_old(name): value for name, value in weights.items()}
    model.save_pretrained(folder, state_dict=weights, save_original_format=False)
    vlm.processor.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {"model_input_names": vlm.processor.tokenizer.model_input_names} | json.loads(path.read_text())
    path.write_text(json.dumps(_readable(settings), indent=2, ensure_ascii=False) + "\n")


def _readable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a tokenizer under names that 4.57 reads as well."""
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _old(name: str) -> str:
    head = "model.vision_tower."
    if name.startswith(head) and not name.startswith(head + "vision_model."):
        return f"{head}vision_model.{name.removeprefix(head)}"
    return name
