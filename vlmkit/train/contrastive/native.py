"""A trained dual encoder in the form of the library that it is of."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from vlmkit.models.find import OPEN_CLIP_CONFIG, Checkpoint


def save(model: Any, origin: Checkpoint, made: Path, final: Path) -> None:
    """Write `model`, which came from `origin`, into `made`, whose files go to `final`.

    open_clip opens it as local-dir:FINAL, transformers by from_pretrained. A CLIP of transformers has no place for the
    bias of the SigLIP loss, which only training needs: it is left out there.
    """
    if origin.backend == "open_clip":
        _save_open_clip(model, origin, made, final)
    else:
        weights = model.state_dict()
        if "logit_bias" in weights and not hasattr(type(model)(model.config), "logit_bias"):
            del weights["logit_bias"]
        model.save_pretrained(made, state_dict=weights)
    for path in origin.processing:
        if not (made / path.name).exists():
            shutil.copyfile(path, made / path.name)


def _save_open_clip(model: nn.Module, origin: Checkpoint, made: Path, final: Path) -> None:
    settings = copy.deepcopy(origin.settings)
    if getattr(model, "logit_bias", None) is not None:
        settings["model_cfg"].setdefault("init_logit_bias", -10)
    if "tower" in origin.places:  # its configuration moves in beside
        settings["model_cfg"]["text_cfg"] |= {"hf_model_name": str(final.absolute()), "hf_model_pretrained": False}
    (made / OPEN_CLIP_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
