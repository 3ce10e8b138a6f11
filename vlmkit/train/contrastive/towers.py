"""The model that contrastive training makes: open_clip's own CustomTextCLIP, so that open_clip opens the result.

The image tower is a timm model, the text tower a Hugging Face encoder, each with a two-layer head.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import timm
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmkit.errors import VlmkitError, first_line
from vlmkit.models.torch_embedder import hush
from vlmkit.train.contrastive.text import layers_of

CONTEXT = 64  # tokens of a caption, first and last mark included
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def build(vision: str, text: str, dim: int, dropout: float) -> tuple[CustomTextCLIP, dict[str, Any]]:
    """(model, its open_clip configuration) from two pretrained towers, with new heads.

    `vision` is a timm model or a folder in timm's form (config.json, model.safetensors), `text` a Hugging Face text
    encoder or a folder of one. Raises VlmkitError where one cannot be opened.
    """
    hush()
    trunk = _open_trunk(vision)
    source: Any = trunk.pretrained_cfg
    preprocess = {
        "mean": list(source["mean"]),
        "std": list(source["std"]),
        "interpolation": source["interpolation"],
        "resize_mode": "shortest",
    }
    size = source["input_size"][-1]
    config: dict[str, Any] = {
        "embed_dim": dim,
        "vision_cfg": {
            "timm_model_name": source["architecture"],
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "mlp",
            "timm_drop": dropout,
            "image_size": size,
        },
        "text_cfg": {
            "hf_model_name": text,
            "hf_tokenizer_name": text,
            "hf_model_pretrained": True,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp",
            "context_length": CONTEXT,
        },
    }
    try:
        model = CustomTextCLIP(**config)
    except (OSError, ValueError) as error:
        raise VlmkitError(f"{text}: not a text encoder ({first_line(error)})", "name a folder or a model") from None
    model.visual.trunk.load_state_dict(_without_classifier(trunk.state_dict(), model.visual.trunk))
    config["text_cfg"]["hf_model_pretrained"] = False
    return model, {"model_cfg": config, "preprocess_cfg": preprocess}


def _open_trunk(vision: str) -> nn.Module:
    name = f"local-dir:{vision}" if Path(vision).is_dir() else vision
    try:
        return timm.create_model(name, pretrained=True)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise VlmkitError(
            f"{vision}: not an image tower ({first_line(error)})", "name a timm model or folder"
        ) from None


def _without_classifier(weights: dict[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """The weights that `trunk` has a place for: all but the classifier's, or it is another architecture."""
    wanted = trunk.state_dict().keys()
    kept = {name: value for name, value in weights.items() if name in wanted}
    if missing := wanted - kept.keys():
        raise VlmkitError(f"the image tower lacks {min(missing)}", "name another one with --vision")
    return kept


def lock(model: CustomTextCLIP, text_layers: int) -> int:
    """Lock the image tower, and the text tower but for its top `text_layers` layers; the heads stay free.

    Returns how many of the lowest text layers are locked. With as many trained layers as there are, or in a tower whose
    layers cannot be told apart, the token embeddings are trained too; with 0 the whole text tower is locked.
    """
    model.visual.trunk.requires_grad_(False)
    tower = model.text.transformer
    layers = layers_of(tower)
    if layers is None:
        tower.requires_grad_(text_layers > 0)
        return 0
    locked = max(0, len(layers) - text_layers)
    tower.requires_grad_(locked == 0)
    for layer in layers[locked:]:
        layer.requires_grad_(True)
    return locked


def open_folder(folder: Path) -> tuple[CustomTextCLIP, Any, HFTokenizer]:
    """(model, evaluation preprocessing, tokenizer) of a folder that `save` wrote, wherever it has been moved to.

    open_clip reads the text tower's configuration from the path in `hf_model_name`, hence the second argument.
    """
    text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, text_cfg={**text, "hf_model_name": str(folder)})
    return model, preprocess, open_clip.get_tokenizer(name)


def save(model: CustomTextCLIP, config: dict[str, Any], text: str, made: Path, final: Path) -> None:
    """Write `model` into `made`, a folder that will be renamed to `final`.

    It then opens with `open_clip.create_model_and_transforms("local-dir:FINAL")`. The tokenizer is that of `text`.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    cfg = config["model_cfg"]
    place = str(final.absolute())
    cfg = cfg | {"text_cfg": cfg["text_cfg"] | {"hf_model_name": place, "hf_tokenizer_name": place}}
    written = json.dumps(config | {"model_cfg": cfg}, indent=2, sort_keys=True)
    (made / "open_clip_config.json").write_text(written + "\n")
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    (made / "model.safetensors").chmod((made / "open_clip_config.json").stat().st_mode)
    model.text.config.save_pretrained(made)
    if Path(text).is_dir():
        for name in TOKENIZER_FILES:
            if (Path(text) / name).exists():
                shutil.copyfile(Path(text) / name, made / name)
    else:
        HFTokenizer(text).save_pretrained(made)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder that `save` wrote, under open_clip's names."""
    return load_file(folder / "model.safetensors")
