"""What a model's name stands for: backend, files and settings, told by contents without opening the model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from vlmkit.errors import VlmkitError
from vlmkit.models import identity
from vlmkit.models.aliases import full_name

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

    def digits(self) -> str:
        """The hex digits of the model's identity."""
        settings = orjson.dumps(self.settings, option=orjson.OPT_SORT_KEYS) if self.settings else b""
        return identity.digits([*self.weights, *self.processing], settings)


def find(name: str) -> Checkpoint:
    """The model called `name`. Raises VlmkitError where the name is unknown or files are missing."""
    from vlmkit.models import openclip_files

    if not name.strip():
        raise VlmkitError("the model has no name", "give -m mini, or another model")
    if name == "mini":
        return _mini(name, Path(__file__).parent / "mini")
    if name.startswith("hf-hub:"):
        return openclip_files.from_hub(name.removeprefix("hf-hub:"))
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return _in_folder(path.absolute(), only_open_clip=name.startswith("local-dir:"))
    if name.startswith("local-dir:"):
        raise VlmkitError(f"{path}: no such folder", f"name a folder that holds {OPEN_CLIP_CONFIG}")
    name = full_name(name)
    if re.fullmatch(r"[\w.-]+:[\w.-]+", name):
        return openclip_files.by_tag(*name.split(":"))
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return _on_hub(name)
    raise openclip_files.unknown(name)


def _in_folder(folder: Path, only_open_clip: bool) -> Checkpoint:
    from vlmkit.models import openclip_files

    if (folder / OPEN_CLIP_CONFIG).is_file():
        return openclip_files.in_folder(str(folder), folder)
    if only_open_clip:
        raise VlmkitError(f"{folder} holds no {OPEN_CLIP_CONFIG}", "name a folder of open_clip")
    if (folder / "mini.json").is_file():
        return _mini(str(folder), folder)
    return _transformers(str(folder), folder)


def _on_hub(repo: str) -> Checkpoint:
    from vlmkit.models import openclip_files
    from vlmkit.models.hub import snapshot

    kind = read_json(snapshot(repo, ["config.json"]) / "config.json").get("model_type")
    if kind not in TRANSFORMERS_TYPES:
        return openclip_files.from_hub(repo)
    needed = ["config.json", "model*.safetensors*", "tokenizer*", "*processor_config.json"]
    try:
        return _transformers(repo, snapshot(repo, needed, TOKENIZER_FILES))
    except MissingFile:  # a download that was cut off
        return _transformers(repo, snapshot(repo, needed, TOKENIZER_FILES, fresh=True))


def _mini(name: str, folder: Path) -> Checkpoint:
    from vlmkit.models.mini import FILES

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
