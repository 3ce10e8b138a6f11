"""Where the files of an open_clip model are: a folder, the Hub, or one of open_clip's own tags."""

import difflib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.models import find, identity
from vlmkit.models.find import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, TOKENIZER_FILES, Checkpoint
from vlmkit.models.hub import snapshot

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode", "fill_color")


def in_folder(name: str, folder: Path, *, from_hub: bool = False) -> Checkpoint:
    """The model of a folder with open_clip's configuration, or of a snapshot of the Hub."""
    config = find.read_json(folder / OPEN_CLIP_CONFIG)
    try:
        text = config["model_cfg"]["text_cfg"]
        settings = {"model_cfg": config["model_cfg"], "preprocess_cfg": config.get("preprocess_cfg", {})}
    except (KeyError, TypeError):
        raise VlmkitError(f"{folder / OPEN_CLIP_CONFIG} has no model_cfg with a text_cfg", "get it again") from None
    own = [path.name for path in sorted(folder.glob("*.safetensors"))]
    weights = next(
        (file for file in OPEN_CLIP_WEIGHTS if file in own), own[0] if len(own) == 1 else OPEN_CLIP_WEIGHTS[0]
    )
    found = find.weights_in(name, folder, [weights])
    return _checkpoint(name, folder, found, settings, _text_files(text, folder, from_hub))


def from_hub(repo: str) -> Checkpoint:
    """The open_clip model ORG/NAME of the Hub."""
    needed = [OPEN_CLIP_CONFIG, "open_clip*.safetensors"]
    optional = [*OPEN_CLIP_WEIGHTS, *TOKENIZER_FILES, "config.json"]
    return in_folder(f"hf-hub:{repo}", snapshot(repo, needed, optional), from_hub=True)


def by_tag(architecture: str, tag: str) -> Checkpoint:
    """One of the models that open_clip lists, with the preprocessing and activation that its tag says."""
    name = f"{architecture}:{tag}"
    if architecture not in _architectures():
        raise unknown(name)
    listed = _tags().get(f"{architecture}:{tag.lower().replace('-', '_')}", {})  # as open_clip looks tags up
    if not listed.get("hf_hub"):
        raise unknown(name)
    repo, _, file = listed["hf_hub"].rpartition("/")
    names = [str(Path(file).with_suffix(".safetensors"))] if file else list(OPEN_CLIP_WEIGHTS[:2])
    folder = snapshot(repo, ["open_clip*.safetensors" if not file else names[0]])
    weights = find.present(folder, names)[:1] or find.weights_in(name, folder, names[:1])
    model = find.read_json(_architectures()[architecture])
    model["quick_gelu"] = bool(model.get("quick_gelu") or listed.get("quick_gelu"))
    preprocess = {key: listed[key] for key in PREPROCESSING if key in listed}
    settings = {"model_cfg": model, "preprocess_cfg": preprocess}
    return _checkpoint(name, folder, weights, settings, _text_files(model["text_cfg"], None, True))


def _text_files(text: dict[str, Any], folder: Path | None, from_hub: bool) -> dict[str, Path]:
    """The folders of a Hugging Face `tokenizer` and of the configuration of a text `tower`, where the model has them.

    A folder brings its own; the Hub may have them under another name, which the configuration tells.
    """
    places: dict[str, Path] = {}
    if wanted := text.get("hf_tokenizer_name"):
        own = folder is not None and (not from_hub or any(folder.glob("tokenizer*")))
        places["tokenizer"] = folder if own and folder else snapshot(wanted, ["tokenizer*"], TOKENIZER_FILES)
    if wanted := text.get("hf_model_name"):
        own = folder is not None and (folder / "config.json").is_file()
        places["tower"] = folder if own and folder else snapshot(wanted, ["config.json"])
    return places


def _checkpoint(
    name: str, folder: Path, weights: list[Path], settings: dict[str, Any], places: dict[str, Path]
) -> Checkpoint:
    files = find.present(places["tokenizer"], TOKENIZER_FILES) if "tokenizer" in places else []
    files += find.present(places["tower"], ["config.json"]) if "tower" in places else []
    return Checkpoint(name, "open_clip", folder, weights, files, settings, places)


def _tags() -> dict[str, dict[str, Any]]:
    """open_clip's table of ARCH:TAG, remembered: to read it, open_clip and with it PyTorch have to be imported."""
    version = importlib.metadata.version("open_clip_torch")
    if (tags := identity.recall("open_clip_tags.json").get(version)) is None:
        import open_clip

        tags = {":".join(pair): open_clip.get_pretrained_cfg(*pair) for pair in open_clip.list_pretrained()}
        identity.remember("open_clip_tags.json", version, tags)
    return tags


def _architectures() -> dict[str, Path]:
    """open_clip's architectures, found without importing it."""
    found = importlib.util.find_spec("open_clip")
    assert found is not None and found.submodule_search_locations
    return {path.stem: path for path in Path(found.submodule_search_locations[0], "model_configs").glob("*.json")}


def unknown(name: str) -> VlmkitError:
    """The error of a name that is no model's, with those that look like it."""
    architecture, colon, _ = name.partition(":")
    near = [*difflib.get_close_matches(architecture, _architectures(), n=3)]
    if colon or near:
        listed = list(_tags())
        near = difflib.get_close_matches(name, listed, n=3) or [
            x for a in near for x in listed if x.startswith(f"{a}:")
        ]
    if near:
        return VlmkitError(f"unknown model {name}", f"did you mean {' or '.join(near[:3])}?")
    return VlmkitError(
        f"unknown model {name}", "use mini, ARCH:TAG of open_clip, hf-hub:ORG/NAME, ORG/NAME, or a folder"
    )
