"""Settings of `vlmkit train`: one dataclass for each stage, whose fields also hold help, units and bounds.

From the fields come the options of the command (`cli/train.py`), what `--config` and `--preset FILE` may hold, and the
train.toml that a run saves.
"""

import math
import os
import types
import typing
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from vlmkit.errors import VlmkitError
from vlmkit.io.files import read_text
from vlmkit.models.registry import CONNECTORS
from vlmkit.train.presets import FROM_SCRATCH, HEADS, LORA_LR, PRESETS, PRETRAINED, REGISTERED, TINY
from vlmkit.train.settings import ALL, LIMITS, PLAIN, Stage, setting

TRACKERS = ("wandb", "tensorboard")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("bf16", "fp16", "fp32")
ATTENTIONS = ("auto", "flex", "mask")
LOSS_WEIGHTINGS = {"tokens": 0.0, "root": 0.5, "replies": 1.0}  # a reply's tokens weigh 1 / length ** power
SFT = (Stage.ALIGN, Stage.INSTRUCT)
HEAD = (Stage.HEAD,)
TARGETS = ("class", "classes", "number")


# Without repr and comparison, which nothing needs: making them would slow the start of every command.
@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class TrainConfig:
    """The settings of all stages. The same configuration on the same machine makes the same bytes."""

    stage: ClassVar[Stage]
    data: list[str]
    out: Path
    start: str | None = setting(None, "Go on from what a stage made, or mini; contrastive: any dual encoder.", "MODEL")
    vision: str | None = setting(
        None, "CLIP or SigLIP tower, mini, patches (none), tiny; contrastive: timm model.", "MODEL"
    )
    val: str | float | None = setting(None, "Data to validate on, or a fraction of DATA to hold out by ids.", "DATA")
    images: str | None = setting(None, "Folder of relative image fields in records.", "DIR", stages=ALL)
    limit: int | None = setting(None, "Read no more than N rows of each DATA.", stages=ALL, least=1)
    epochs: float = setting(1.0, "Times through the data; wins over the steps of a preset.", above=0)
    steps: int | None = setting(None, "Number of steps; wins over --epochs.", least=1)
    batch_size: int = setting(32, stages=ALL, least=1)  # pictures, with all their texts, over all processes
    accumulate: int = setting(1, "Parts that a batch is computed in, to save memory.", least=1)
    augmentations: int = setting(1, "Views of a picture; 2: its mirror image too, more: random crops.", least=1)
    lr: float = setting(2e-5, "Peak learning rate.", "RATE", least=0)
    weight_decay: float = setting(0.0, "Weight decay of AdamW; biases and norms have none.", "RATE", least=0)
    warmup: float = setting(0.03, "Share of the steps in which the learning rate rises.", "SHARE", least=0, most=1)
    schedule: str = setting("cosine", "Course of the learning rate after it has risen.", choices=SCHEDULES)
    min_lr: float = setting(0.0, "Learning rate at the end of the schedule.", "RATE", least=0)
    clip: float = setting(1.0, "Largest norm of the gradient.", "NORM", above=0)
    precision: str | None = setting(
        None, "Numbers that it computes in; by default bf16 on a GPU that has it, fp32 on a CPU.", choices=PRECISIONS
    )
    compile: bool = setting(False, "Compile the blocks of the model first (torch.compile).")
    save_steps: int | None = setting(None, "Checkpoint and validate every N steps.", least=1)
    keep: int = setting(2, "Checkpoints to keep, beside the best.", least=1)
    patience: int | None = setting(None, "Stop after N validations without improvement.", least=1)
    log_every: int = setting(10, "Log every N steps.", least=1)
    report_to: str | None = setting(None, "Also log to wandb or tensorboard.", choices=TRACKERS)
    seed: int = setting(0, stages=ALL, least=0)
    device: str = setting("cpu", choices=("cpu", "cuda", "mps"), stages=ALL)
    workers: int | None = setting(None, stages=ALL, least=0)

    def loaders(self) -> int:
        """The workers of this process: unless set, its share of the cores."""
        if self.workers is not None:
            return self.workers
        return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def saves_shards(self) -> bool:
        """Whether checkpoints are written by all processes, each its part."""
        return False

    def computes_in(self) -> str:
        """The precision of the run, one of PRECISIONS."""
        if self.precision is not None or self.device != "cuda":
            return self.precision or "fp32"
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class ContrastiveConfig(TrainConfig):
    """The model is `start`, or one of two towers, `vision` and `text`, with new heads."""

    stage = Stage.CONTRASTIVE
    text: str | None = setting(None, "Text tower: an encoder of Hugging Face, by name or folder.", "MODEL")
    lock: str = setting("none", "Tower that is not trained.", choices=("image", "text", "none"))
    loss: str = setting("infonce", "Contrastive loss; infonce is CLIP's.", choices=("infonce", "siglip"))
    captions: int = setting(1, "Captions of each picture in a batch.", least=1)
    dim: int = setting(256, "Dimensions of the space of two towers.", least=1)
    best: bool = setting(True, "End with the weights of the best validation, not with the last ones.")
    epochs: float = 10.0
    batch_size: int = 256
    lr: float = 5e-4
    weight_decay: float = 0.2
    warmup: float = 0.1


DROPOUT = "Dropout of features, embeddings and blocks; contrastive: in the head of a locked image tower."


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class LitConfig(ContrastiveConfig):
    """Two towers, the image tower locked: it runs once over every picture, training reads its features from memory."""

    text_epochs: int = setting(1, "Last epochs that train the text tower beside a locked image tower too.", least=0)
    text_lr: float = setting(3e-5, "Peak learning rate of the text tower in these epochs.", "RATE", least=0)
    text_layers: int = setting(1, "Top layers of the text tower that they train.", least=0)
    feature_dropout: float = setting(0.35, "Dropout of a locked image tower's features.", "SHARE", least=0, below=1)
    dropout: float = setting(0.3, DROPOUT, "SHARE", least=0, below=1)
    lock: str = "image"
    epochs: float = 40.0
    batch_size: int = 512
    captions: int = 5
    augmentations: int = 4
    lr: float = 1e-3  # of the heads
    weight_decay: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class VlmConfig(TrainConfig):
    """A vision tower, a projector and a language model."""

    llm: str | None = setting(None, "Causal language model of transformers, by name or folder.", "MODEL")
    connector: str | None = setting(None, f"{', '.join(CONNECTORS.builtin)}; mlp is LLaVA's.", "C")
    template: str | None = setting(None, "Chat template: vicuna, llama-2, chatml, or a Jinja file.", "FILE")
    projector_lr: float = setting(1e-3, "Peak learning rate of the projector.", "RATE", least=0)
    train_vision: bool = setting(False, "Train the vision tower, too.", stages=SFT)
    vision_lr: float = setting(2e-6, "Peak learning rate of the vision tower.", "RATE", stages=SFT, least=0)
    beta2: float = setting(0.999, "Decay of AdamW's second moment.", "SHARE", least=0, below=1)
    dropout: float = setting(0.0, DROPOUT, "SHARE", least=0, below=1)
    label_smoothing: float = setting(0.0, "Smoothing of the labels.", "SHARE", stages=SFT, least=0, below=1)
    loss_weighting: str = setting(
        "tokens", "What counts the same in the loss; root is between.", choices=tuple(LOSS_WEIGHTINGS), stages=SFT
    )
    image_aspect: str = setting("crop", "How a picture becomes square (CLIP towers).", choices=("crop", "pad"))
    lora: int | None = setting(
        None,
        "Train adapters of rank R in the place of the language model.",
        "R",
        stages=(Stage.INSTRUCT, Stage.PREFER),
        least=1,
    )
    quantize: str | None = setting(
        None, "Hold the frozen language model in 4 bits (QLoRA, by bitsandbytes).", choices=("4bit",)
    )
    max_length: int = setting(2048, "Longest sample; the text of longer ones is cut.", "TOKENS", least=1)
    pack_length: int | None = setting(
        None, "Length of a row, which samples share; by default four pictures and more.", "TOKENS", stages=SFT, least=1
    )
    max_tokens_per_batch: int = setting(
        16384, "Tokens, with padding, that go through the model at once.", "TOKENS", stages=SFT, least=1
    )
    max_pictures_per_batch: int = setting(128, "Pictures that go through the model at once.", stages=SFT, least=1)
    cache_features: bool = setting(False, "Compute the features of the frozen vision tower once, on disk.")
    checkpointing: bool = setting(False, "Compute activations again in the backward pass, to save memory.")
    attention: str = setting(
        "auto", "How packed rows attend; auto: flex on a GPU that has it, else mask.", choices=ATTENTIONS, stages=SFT
    )
    masters: bool = setting(
        True, "In bf16: compute on bf16 weights, of which fp32 masters are updated, not by autocast.", stages=SFT
    )
    fsdp: bool = setting(False, "Under torchrun: shard the model over the processes (FSDP2), not copies.", stages=SFT)
    offload: bool = setting(False, "With --fsdp: keep the shards in main memory between their turns.", stages=SFT)

    def has_masters(self) -> bool:
        """Whether the run computes on bfloat16 weights of which it updates float32 masters.

        Where a projector or adapters alone are trained, these stay float32: they are small.
        """
        whole = self.train_vision or (self.stage is Stage.INSTRUCT and not self.lora)
        return self.masters and whole and not self.quantize and self.computes_in() == "bf16"

    def saves_shards(self) -> bool:
        return self.fsdp or self.has_masters()


# LLaVA-1.5 (Liu and others, 2023, table 9); TinyLLaVA (Zhou and others, 2024) for the small language models.
@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class AlignConfig(VlmConfig):
    """Trains the projector alone."""

    stage = Stage.ALIGN
    batch_size: int = 256


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class InstructConfig(VlmConfig):
    """Trains projector and language model, on replies."""

    stage = Stage.INSTRUCT
    batch_size: int = 128
    projector_lr: float = 2e-5
    image_aspect: str = "pad"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class PreferConfig(VlmConfig):
    """Trains projector and language model, on pairs of replies (DPO)."""

    stage = Stage.PREFER
    beta: float = setting(0.1, "Pull of DPO towards the model as it was.", above=0)
    lr: float = 5e-7
    projector_lr: float = 5e-7
    warmup: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class HeadConfig(TrainConfig):
    """Fits a linear head on the vectors of a frozen embedder."""

    stage = Stage.HEAD
    model: str | None = setting(None, stages=HEAD)
    label: str = setting("label", "Field of what is learned.", "FIELD", stages=HEAD)
    target: str | None = setting(None, "What it holds, by default as in the first row.", choices=TARGETS, stages=HEAD)
    folds: int = setting(5, "Parts that are predicted by a head fitted to the others.", stages=HEAD, least=2)
    balance: bool = setting(False, "Let each class count the same, however many rows it has.", stages=HEAD)
    l2: float | None = setting(None, "Strength of weight decay, by default what suits.", "RATE", stages=HEAD, above=0)
    batch_size: int = 64


KINDS: tuple[type[TrainConfig], ...] = (
    *(ContrastiveConfig, LitConfig),
    *(AlignConfig, InstructConfig, PreferConfig),
    HeadConfig,
)
USUAL = "config.toml: "
RENAMED = {"out": "output", "start": "from", "patience": "early-stop"}


def name_of(field: str) -> str:
    """The name of a field in TOML and, after --, on the command line."""
    return RENAMED.get(field, field).replace("_", "-")


def _settings_of(kind: type[TrainConfig]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__[:-1]):
        for each in fields(base):
            found[each.name] = each.metadata or found.get(each.name, PLAIN)
    return {name: metadata for name, metadata in found.items() if kind.stage in metadata["stages"]}


SETTINGS = {kind: _settings_of(kind) for kind in KINDS}  # `setting` of the fields that a stage uses, by name
TYPES = {name: hint for kind in KINDS for name, hint in typing.get_type_hints(kind).items()} | {"preset": str}


def stages_with(field: str) -> list[Stage]:
    """The stages that use the setting."""
    return list(dict.fromkeys(kind.stage for kind in KINDS if field in SETTINGS[kind]))


def load_config(
    stage: Stage,
    flags: dict[str, Any],
    preset: str | None = None,
    file: Path | None = None,
    device: str = "cpu",
    standing: dict[str, Any] | None = None,
) -> TrainConfig:
    """The configuration of a run: defaults, a preset, `standing` settings, a TOML `file`, `flags`; each wins over those
    before.

    `flags` and `standing` are by field name, None where not given; `preset` is a name or a TOML file; `device` is used
    unless one is given. `epochs` without `steps` drops the `steps` of what came before. Raises VlmkitError.
    """
    from_file = _read_toml(stage, file) if file else {}
    usual, given = (
        {name: _in_type(name, value, where) for name, value in layer.items() if value is not None}
        for where, layer in ((USUAL, standing or {}), ("--", flags))
    )
    preset = next(filter(None, (preset, from_file.pop("preset", None), usual.pop("preset", None))), None)
    kind, defaults = _defaults(stage, preset, usual | from_file | given)
    settings: dict[str, Any] = {"device": device}
    for where, layer in ((f"{preset}: ", defaults), (USUAL, usual), (f"{file}: ", from_file), ("--", given)):
        if "epochs" in layer and "steps" not in layer:
            settings.pop("steps", None)
        for name, value in layer.items():
            _validate(kind, name, value, where + name_of(name))
        settings |= layer
    for name, flag in (("data", "DATA"), ("out", "--output")):
        if name not in settings:
            raise VlmkitError(f"{flag} is missing", "give it on the command line or in --config")
    return kind(**settings)


def _defaults(stage: Stage, preset: str | None, given: dict[str, Any]) -> tuple[type[TrainConfig], dict[str, Any]]:
    """The class of a run's configuration, and its defaults: of the preset, learning rates that suit the model."""
    table = PRESETS.get(stage, PRESETS["vlm"])
    if preset and ("/" in preset or preset.endswith(".toml")):
        settings = _read_toml(stage, Path(preset))
    elif preset in (None, *table):
        settings = table.get(preset or "", {})
    else:
        raise VlmkitError(f"unknown preset {preset}", f"use {', '.join(table)}, or a TOML file such as ./mine.toml")
    if stage is Stage.CONTRASTIVE:
        return _contrastive_defaults(settings, given)
    if "start" in given:  # it brings its own towers
        settings = {name: value for name, value in settings.items() if name not in ("vision", "llm")}
    if given.get("lora"):
        settings = settings | {"lr": LORA_LR} if preset == "small" else {"lr": LORA_LR} | settings
    return next(kind for kind in KINDS if kind.stage is stage), settings


def _contrastive_defaults(preset: dict[str, Any], given: dict[str, Any]) -> tuple[type[TrainConfig], dict[str, Any]]:
    towers = [name for name in REGISTERED if name in given]
    if towers and "start" in given:
        raise VlmkitError(f"{given['start']} brings its own towers", f"leave --{towers[0]} out, or --from")
    settings = {name: value for name, value in preset.items() if name != "start" or not towers}
    start = (settings | given).get("start")
    if start is None:
        locked = (settings | given).get("lock", "image") == "image"
        return (LitConfig, REGISTERED | settings) if locked else (ContrastiveConfig, REGISTERED | HEADS | settings)
    rates = FROM_SCRATCH | {"lr": 1e-3} if start == TINY else FROM_SCRATCH if is_from_scratch(start) else PRETRAINED
    return ContrastiveConfig, rates | settings


def is_from_scratch(start: str) -> bool:
    """Whether the model `start` has no weights yet."""
    import open_clip

    from vlmkit.models.resolve import PICKLES

    folder = Path(start.removeprefix("local-dir:"))
    if folder.is_dir():
        return not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", *PICKLES))
    return start == TINY or start in open_clip.list_models()


def _read_toml(stage: Stage, file: Path) -> dict[str, Any]:
    """The settings in `file` by field name, `preset` too. Raises VlmkitError for another stage or unknown names."""
    import tomllib

    try:
        found = tomllib.loads(read_text(file, "name a TOML file of settings"))
    except tomllib.TOMLDecodeError as error:
        raise VlmkitError(f"{file}: {error}", "fix the file") from None
    if (other := found.pop("stage", stage)) != stage:
        raise VlmkitError(f"{file} is for {other}, not for {stage}", "name its stage, or another file")
    names = {name_of(name): name for name in TYPES}
    if unknown := [key for key in found if key.replace("_", "-") not in names]:
        raise VlmkitError(f"{file}: unknown setting {unknown[0]}", "use the names of the options without --")
    settings = {names[key.replace("_", "-")]: value for key, value in found.items()}
    return {name: _in_type(name, value, f"{file}: ") for name, value in settings.items()}


def _validate(kind: type[TrainConfig], field: str, value: Any, label: str) -> None:
    """Raises VlmkitError where the stage does not use the setting, or for a value outside its choices or limits."""
    setting = SETTINGS[kind].get(field)
    if setting is None:
        if kind is ContrastiveConfig and field in SETTINGS[LitConfig]:
            raise VlmkitError(f"{label} needs a locked image tower", "use it with --vision, --text and --lock image")
        others = ", ".join(stages_with(field)) or "no stage"
        raise VlmkitError(f"{label} is not for {kind.stage}", f"leave it out, it is for {others}")
    if setting["choices"] and value not in setting["choices"]:
        raise VlmkitError(f"{label} {value} is unknown", f"use {', '.join(setting['choices'])}")
    if type(value) in (int, float):
        limits = [(*LIMITS[name], limit) for name, limit in setting["limits"].items()]
        if not (math.isfinite(value) and all(holds(value, limit) for holds, _, limit in limits)):
            needed = " and ".join(f"{words} {limit:g}" for _, words, limit in limits)
            raise VlmkitError(f"{label} {value:g} is out of range", f"give {needed or 'a finite number'}")


def _in_type(field: str, value: Any, where: str) -> Any:
    """`value` converted to the type of the field. Raises VlmkitError where it has another type."""
    hint = TYPES[field]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and type(value) in (int, *kinds):
        with suppress(ValueError):  # of a text, which is data and no fraction
            return float(value)
    if Path in kinds and isinstance(value, str):
        value = Path(value)
    texts = list[str] in kinds and isinstance(value, list) and all(isinstance(each, str) for each in value)
    if texts or type(value) in kinds or isinstance(value, Path):
        return value
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    expected = " or ".join(names.get(kind, "a list of texts") for kind in kinds if kind is not types.NoneType)
    raise VlmkitError(f"{where}{name_of(field)} = {value!r} has the wrong type", f"give {expected}")
