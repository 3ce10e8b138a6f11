"""What one run of contrastive training does.

What one run of align, instruct or prefer does.

Recipes by name, and the rates that suit what is trained. What they leave out has the default of the config.

Recipes by stage and name. What they leave out has the default of `VlmConfig`.

A run's configuration: defaults, then a preset, then a TOML file, then flags; each wins over those before it.

What can be refused before anything is read.
"""

import importlib.util
import math
import os
import tomllib
import types
import typing
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from vlmkit.errors import VlmkitError


@dataclass(frozen=True, slots=True)
class ContrastiveConfig:
    """The same configuration on the same machine makes the same bytes.

    The model is `start`, or one of two towers, `vision` and `text`, with new heads.
    """

    data: list[str]
    out: Path
    start: str | None = None  # a dual encoder of open_clip or transformers, with weights or without, or "tiny"
    vision: str | None = None  # a timm model, or a folder in timm's form
    text: str | None = None  # a Hugging Face text encoder, or a folder of one
    lock: str = "none"  # image, text or none: the tower that is not trained
    loss: str = "infonce"  # or siglip
    val: str | float | None = None  # other data, or the share of `data` to hold out
    images: str | None = None  # folder of relative picture names
    limit: int | None = None  # at most so many pictures of `data`, and of `val`
    epochs: float = 10
    steps: int | None = None  # so many, whatever `epochs` says
    batch_size: int = 256  # pictures, over all processes
    accumulate: int = 1  # parts that a process computes its pictures in
    captions: int = 1  # of each picture in a batch
    views: int = 1  # 1: the picture; 2: and its mirror image; more: and random crops
    dim: int = 256  # of the space, for two towers with new heads
    lr: float = 5e-4
    weight_decay: float = 0.2
    warmup: float = 0.1  # share of all steps
    clip: float = 1.0  # of the gradient's norm
    save_steps: int | None = None  # a tenth of the run unless told
    keep: int = 2
    best: bool = True  # end with the weights of the best validation, not with the last ones
    patience: int | None = None  # validations without improvement before stopping
    log_every: int = 10
    report_to: str | None = None
    seed: int = 0
    device: str = "cpu"
    workers: int = 2


@dataclass(frozen=True, slots=True)
class LitConfig(ContrastiveConfig):
    """Two towers, the image tower locked: it runs once over every picture, training reads its features from memory."""

    lock: str = "image"
    epochs: float = 40
    batch_size: int = 512
    captions: int = 5
    views: int = 4
    lr: float = 1e-3  # of the heads
    weight_decay: float = 1.0
    text_epochs: int = 1  # in how many of the last epochs the text tower is trained too; before, the heads alone
    text_lr: float = 3e-5  # of the text tower
    text_layers: int = 1  # how many of its top layers are trained
    dropout: float = 0.3  # in the head of the image tower
    feature_dropout: float = 0.35  # of the image tower's features


@dataclass(frozen=True, slots=True)
class VlmConfig:
    """The same configuration on the same machine makes the same bytes."""

    stage: str  # align, instruct or prefer
    data: list[str]
    out: Path
    vision: str | None = None  # a CLIP or SigLIP tower, "mini", "patches"; None with `start`, or for a tiny one
    llm: str | None = None
    connector: str | None = None  # mlp unless told
    start: str | None = None  # a folder that an earlier stage made
    val: str | float | None = None
    images: str | None = None
    limit: int | None = None  # at most so many rows of each DATA
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 32  # pictures, with all that is said about them, over all processes
    accumulate: int = 1  # micro-batches a step
    lr: float = 2e-5  # of the language model
    projector_lr: float = 1e-3
    weight_decay: float = 0.0
    beta2: float = 0.999
    warmup: float = 0.03  # share of all steps
    clip: float = 1.0  # of the gradient's norm
    dropout: float = 0.0  # of features, embeddings, and what each attention and MLP block adds
    smoothing: float = 0.0  # of the labels
    weigh: str = "tokens"  # what weighs the same: tokens or replies; root: between, by 1 / sqrt(tokens of the reply)
    views: int = 1  # of each picture; 2: its mirror image too (captions without left and right); more: random crops
    aspect: str = "crop"  # or pad: to a square, with the mean colour (CLIP towers)
    lora: int | None = None
    quantize: str | None = None
    beta: float = 0.1  # of DPO
    max_length: int = 2048  # tokens of a sample; the text of longer ones is cut
    pack_length: int = 1024  # tokens of a row
    cache_features: bool = False  # of the frozen vision tower, once, on disk
    checkpointing: bool = False  # activations computed again in the backward pass
    save_steps: int | None = None  # a tenth of the run unless told
    keep: int = 2
    patience: int | None = None  # evaluations without improvement before stopping
    log_every: int = 10
    report_to: str | None = None
    fsdp: bool = False
    seed: int = 0
    device: str = "cpu"
    workers: int = 2


TINY_DUAL = "tiny"
# A high rate destroys learned weights unseen: a third of that of WiSE-FT (Wortsman and others, 2022).
LEARNED = {"lr": 1e-5, "weight_decay": 0.1}
NEW = {"lr": 5e-4, "weight_decay": 0.2}  # OpenCLIP (Cherti and others, 2023)
HEADS = {"lr": 1e-4, "weight_decay": 0.2}  # new heads on learned towers
CONTRASTIVE_PRESETS: dict[str, dict[str, Any]] = {
    "debug": {"start": TINY_DUAL, "batch_size": 16, "steps": 20, "log_every": 1, "save_steps": 5},
    "small": {"start": "ViT-B-32:laion2b_s34b_b79k", "batch_size": 256, "epochs": 5.0},
    "full": {"start": "ViT-B-16", "batch_size": 4096, "accumulate": 16, "epochs": 32.0, "warmup": 0.05},
}
WHERE = ("wandb", "tensorboard")
LOSSES, LOCKS = ("infonce", "siglip"), ("image", "text", "none")
REGISTERED = {"vision": "efficientnet-lite0", "text": "all-minilm-l6-v2"}


def is_new(start: str) -> bool:
    """Whether the model `start` has no weights yet."""
    import open_clip

    from vlmkit.models.resolve import PICKLES

    if start == TINY_DUAL:
        return True
    folder = Path(start.removeprefix("local-dir:"))
    if folder.is_dir():
        return not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", *PICKLES))
    return start in open_clip.list_models()


def recipe_of(preset: str | None, told: dict[str, Any]) -> tuple[type[ContrastiveConfig], dict[str, Any]]:
    """The kind of run, and its settings, where flags and file have `told` theirs. Raises VlmkitError."""
    if preset is not None and preset not in CONTRASTIVE_PRESETS:
        raise VlmkitError(f"unknown preset {preset}", f"use {', '.join(CONTRASTIVE_PRESETS)}")
    settings = dict(CONTRASTIVE_PRESETS[preset]) if preset else {}
    for name, choices in (("loss", LOSSES), ("lock", LOCKS)):
        if told.get(name, choices[0]) not in choices:
            raise VlmkitError(f"unknown --{name} {told[name]}", f"use {', '.join(choices)}")
    towers = [name for name in REGISTERED if name in told]
    if towers and "start" in told:
        raise VlmkitError(f"{told['start']} brings its own towers", f"leave --{towers[0]} out, or --from")
    if towers or not (preset or "start" in told):
        settings = REGISTERED | {key: value for key, value in settings.items() if key != "start"}
        if told.get("lock", "image") == "image":
            return LitConfig, settings
        return ContrastiveConfig, HEADS | settings
    start = (settings | told)["start"]
    rates = {"lr": 1e-3, "weight_decay": 0.2} if start == TINY_DUAL else NEW if is_new(start) else LEARNED
    return ContrastiveConfig, rates | settings


# LLaVA-1.5 (Liu and others, 2023, table 9); TinyLLaVA (Zhou and others, 2024) for the small language models.
STAGES: dict[str, dict[str, Any]] = {
    "align": {"batch_size": 256, "projector_lr": 1e-3},
    "instruct": {"batch_size": 128, "projector_lr": 2e-5, "lr": 2e-5, "aspect": "pad"},
    "prefer": {"batch_size": 32, "projector_lr": 5e-7, "lr": 5e-7, "warmup": 0.1},
}
LORA_LR = 2e-4
VLM_PRESETS: dict[str, dict[str, Any]] = {
    "debug": {
        "vision": "tiny",
        "llm": "tiny",
        "batch_size": 8,
        "steps": 20,
        "lr": 1e-3,
        "projector_lr": 1e-3,
        "log_every": 1,
        "save_steps": 5,
        "aspect": "crop",
    },
    "small": {
        "vision": "openai/clip-vit-base-patch32",
        "llm": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "batch_size": 64,
        "lr": 1e-4,
        "projector_lr": 1e-3,
    },
    "full": {"vision": "openai/clip-vit-large-patch14-336", "llm": "Qwen/Qwen2.5-0.5B-Instruct"},
}


def preset_of(stage: str, name: str | None, begun: bool, lora: bool) -> dict[str, Any]:
    """The settings of `stage` with the preset `name`; a run that has `begun` (--from) brings its own towers."""
    if name is not None and name not in VLM_PRESETS:
        raise VlmkitError(f"unknown preset {name}", f"use {', '.join(VLM_PRESETS)}")
    settings = STAGES[stage] | (VLM_PRESETS[name] if name else {}) | {"stage": stage}
    if lora and name != "debug":
        settings["lr"] = LORA_LR
    if begun:
        settings = {key: value for key, value in settings.items() if key not in ("vision", "llm")}
    return settings


T = TypeVar("T")
FLAGS = {"out": "output", "start": "from", "patience": "early-stop", "smoothing": "label-smoothing"}


def flag_of(field: str) -> str:
    """The name of a field on the command line and in TOML."""
    return FLAGS.get(field, field).replace("_", "-")


def resolve(kind: type[T], preset: dict[str, Any], told: dict[str, Any], flags: dict[str, Any]) -> T:
    """A `kind`, a frozen dataclass, from settings by field name: `told` is what `read` found, None a flag not given.

    Raises VlmkitError for a flag that this stage does not have, and for what is missing.
    """
    hints = typing.get_type_hints(kind)
    given = {name: value for name, value in flags.items() if value is not None}
    if odd := sorted(given.keys() - hints.keys()):
        raise VlmkitError(f"--{flag_of(odd[0])} is not for this stage", "leave it out, see vlmkit train --help")
    settings = preset | told | given
    missing = [f.name for f in fields(kind) if f.name not in settings and _required(f)]  # type: ignore[arg-type]
    if missing:
        name = "DATA" if missing[0] == "data" else f"--{flag_of(missing[0])}"
        raise VlmkitError(f"{name} is missing", "give it on the command line or in --config, see vlmkit train --help")
    _check(settings)
    return kind(**settings)


def _check(settings: dict[str, Any]) -> None:
    """Raises VlmkitError where a run would only seem to do what was asked for."""
    for name, value in settings.items():
        if name.endswith("lr") and not 0 <= value < math.inf:
            raise VlmkitError(f"--{flag_of(name)} {value:g} is no rate", "give one of 0 or more, such as 1e-4")
    if settings.get("epochs", 1) <= 0:
        raise VlmkitError(f"--epochs {settings['epochs']:g} trains nothing", "give a number above 0")
    if settings.get("patience") and settings.get("val") is None:
        raise VlmkitError("--early-stop counts validations, and there are none", "give --val")


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def read(kind: type[Any], file: Path, **beside: type) -> dict[str, Any]:
    """The settings in a TOML file, by field name of `kind`, or of those `beside` it.

    Raises VlmkitError for a name or a value that does not fit.
    """
    try:
        told = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise VlmkitError(f"{file}: {error}", "mend the file") from None
    hints = typing.get_type_hints(kind) | beside
    names = {flag_of(name): name for name in hints} | {flag_of(name).replace("-", "_"): name for name in hints}
    found = {}
    for key, value in told.items():
        if key not in names:
            raise VlmkitError(f"{file}: no setting is called {key}", "use the names of the flags without --")
        found[names[key]] = _fitting(value, hints[names[key]], f"{file}: {key}")
    return found


def _fitting(value: Any, hint: Any, where: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
    for kind in kinds:
        if kind is Path and isinstance(value, str):
            return Path(value)
        if typing.get_origin(kind) is list and isinstance(value, list):
            return [_fitting(each, typing.get_args(kind)[0], where) for each in value]
        if isinstance(kind, type) and type(value) is kind:
            return value
    raise VlmkitError(f"{where} = {value!r} does not fit", f"give {' or '.join(map(_name, kinds))}")


def _name(kind: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return names.get(kind, "a list")


def as_toml(config: Any) -> str:
    """All settings of `config`, as `--config` reads them."""
    import tomli_w

    values = {flag_of(field.name): getattr(config, field.name) for field in fields(config)}
    return tomli_w.dumps({name: _plain(value) for name, value in values.items() if value is not None})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


POWERS = {"tokens": 0.0, "root": 0.5, "replies": 1.0}  # a reply's tokens weigh 1 / length ** power


def check(config: VlmConfig) -> None:
    """Raises VlmkitError where `config` contradicts itself, or wants what this machine does not have."""
    from vlmkit.train.distributed import world

    if config.batch_size % (config.accumulate * world()):
        what = f"{config.batch_size} pictures do not divide into {config.accumulate * world()} equal parts"
        raise VlmkitError(what, "change --batch-size or --accumulate")
    if config.start not in (None, "mini") and not os.path.isdir(config.start):
        raise VlmkitError(f"{config.start} is no folder", "name one that vlmkit train made, or mini")
    if config.views < 1:
        raise VlmkitError(f"views = {config.views} leaves nothing to see", "1 is the picture alone")
    if config.weigh not in POWERS:
        raise VlmkitError(f"weigh = {config.weigh!r} is not known", f"use {', '.join(POWERS)}")
    if config.lora and config.stage == "align":
        raise VlmkitError("align trains the projector alone", "leave --lora out, or use it with instruct")
    if config.quantize is not None:
        _four_bit(config)
    if config.fsdp and (config.device != "cuda" or world() == 1):
        lack = "there is none" if config.device != "cuda" else "this is one process"
        raise VlmkitError(f"--fsdp shards the model over several GPUs, and {lack}", "use torchrun, or leave it out")
    if config.report_to is not None:
        if config.report_to not in WHERE:
            raise VlmkitError(f"unknown --report-to {config.report_to}", f"use {' or '.join(WHERE)}")
        _needs(config.report_to, f"--report-to {config.report_to}", f"pip install {config.report_to}")
    if config.stage == "prefer":
        _needs("trl", "prefer", "pip install 'vlmkit[prefer]'")


def _four_bit(config: VlmConfig) -> None:
    if config.quantize != "4bit":
        raise VlmkitError(f"--quantize {config.quantize} is not known", "use 4bit")
    if config.device != "cuda":
        raise VlmkitError("4 bit needs a CUDA device, and there is none", "leave --quantize out, or use --lora alone")
    if config.stage != "align" and not config.lora:
        raise VlmkitError("4-bit weights cannot be trained themselves", "add --lora R: adapters beside them (QLoRA)")
    _needs("bitsandbytes", "4 bit", "pip install bitsandbytes")


def _needs(package: str, what: str, remedy: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise VlmkitError(f"{what} needs the package {package}", remedy)
