"""The end of a run: a standard folder that transformers 5 and 4.57 open."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vlmkit.models.vlm import TOWERS, Vlm
from vlmkit.train.vlm.card import model_card
from vlmkit.train.vlm.config import VlmConfig
from vlmkit.train.vlm.folder import FINISHING, MARKERS, SETTINGS, checkpoint_folder
from vlmkit.train.vlm.plot import plot_losses
from vlmkit.train.vlm.steady import whole_or_told


def finish(vlm: Vlm, config: VlmConfig, history: list[dict[str, Any]]) -> None:
    """Write the model into `config.out`: all but its weights first, which say that the run is done.

    Raises VlmkitError where there is no room for it.
    """
    folder = checkpoint_folder(config)
    with (
        whole_or_told("the model", folder),
        tempfile.TemporaryDirectory(prefix=FINISHING, dir=config.out) as name,
    ):
        made = Path(name)
        save(vlm, made)
        plot_losses(history, made / "loss.png")
        (made / "README.md").write_text(model_card(vlm, config, history))
        shutil.copyfile(folder / SETTINGS, made / SETTINGS)
        mode = (made / SETTINGS).stat().st_mode
        for path in sorted(made.iterdir(), key=lambda path: (path.name in MARKERS, path.name)):
            path.chmod(mode)  # safetensors makes its files for the owner alone
            os.replace(path, config.out / path.name)


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
