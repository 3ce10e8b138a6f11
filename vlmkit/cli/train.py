"""The command train, with an option for each setting of its stages."""

import importlib
import inspect
import typing
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmkit.cli.command import FILES, RUNNING
from vlmkit.cli.defaults import is_given, named_model, set_by_file
from vlmkit.cli.help import Topic, Topics
from vlmkit.cli.options import MODEL, Device, Errors, Run, Seed, model_option, option
from vlmkit.cli.screen import for_person, print_facts
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import Failures, Output, stdin_is_terminal, warn
from vlmkit.train.config import KINDS, SETTINGS, TYPES, load_config, name_of, stages_with
from vlmkit.train.presets import LORA_LR
from vlmkit.train.settings import TRAINED, Stage

CHECK = "check"
Work = StrEnum("Work", [*((stage.name, stage.value) for stage in Stage), (CHECK.upper(), CHECK)])  # type: ignore[misc]
STAGES = {
    Stage.CONTRASTIVE: """Train a dual encoder for embed and search, on pictures with captions.

    The model is --from, or two towers, --vision and --text, under new heads; by default the image tower is locked then,
    and runs over each picture once. Learning rates depend on the model: 1e-5 for learned weights, 5e-4 from nothing.
    With --val, retrieval is measured after each epoch, and the weights of the best validation are kept.""",
    Stage.ALIGN: """Train the projector between a vision tower and a language model, on captions.

    The first stage of a vision-language model; --vision and --llm name its towers, which stay as they are. --from
    carries the folder that comes out into the stage instruct. With --from a BLIP-2 or InstructBLIP, its Q-Former.""",
    Stage.INSTRUCT: """Train the projector and the language model, on questions, conversations and captions.

    A sample has several pictures and turns, one, or none. --lora R trains adapters in place of the language model.
    --from is the folder of the stage align, or mini; or a BLIP-2 or InstructBLIP, whose Q-Former is trained.""",
    CHECK: """Check a trained folder: its files and weights, that it opens, sees and generates, and its card.

    DATA is the folder. A record a check says what is so, or what is wrong; then the command fails, too.""",
    Stage.PREFER: """Train on pairs of a chosen and a rejected answer (DPO).

    DATA are records with `image`, `question`, `chosen` and `rejected`, such as `vlmkit ask --pairs` writes; without a
    question, of captions. --from is the folder of the stage instruct. Needs the extra `prefer`.""",
    Stage.HEAD: """Fit a linear head on the vectors of a frozen embedder, for classify -m DIR.

    DATA are records with `label`: a text for one of several classes, a list of texts for what may apply together, or a
    number; and with a vector of `vlmkit embed`, or a picture. Prints the figures of each of --folds, then their means:
    accuracy, F1, AUROC of each class, calibration; of a number R2 and rank correlation. It takes seconds, so there is
    nothing to resume.""",
}
RUNS = {Stage.CONTRASTIVE: "vlmkit.train.contrastive.run", Stage.HEAD: "vlmkit.train.head.run"}
RUN = "vlmkit.train.vlm.run"  # of the other stages
GROUPS = {  # of settings, by field
    MODEL: "start vision text llm connector template lock dim lora quantize",
    "Data": "val images limit label target folds captions augmentations image_aspect max_length pack_length "
    "max_tokens_per_batch max_pictures_per_batch",
    "Steps": "epochs steps accumulate patience text_epochs",
    "Optimizer": "lr projector_lr train_vision vision_lr text_lr text_layers schedule min_lr warmup weight_decay clip "
    "beta2",
    "Loss": "loss beta label_smoothing loss_weighting balance l2 dropout feature_dropout",
    "Checkpoints and logs": "best save_steps keep log_every report_to",
    RUNNING: "precision masters compile attention cache_features checkpointing fsdp offload",
}
StageName = Annotated[Work, typer.Argument(metavar="STAGE", help=", ".join(Work) + ".")]
Data = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA",
        help="Records, LLaVA or COCO JSON, .tar shards, also by URL, - for standard input; 2:DATA counts twice.",
        show_default=False,
    ),
]
Folder = Annotated[
    str | None, option("-o, --output DIR", "Folder to make; the model stands there at the end.", group=FILES)
]
Embedder = Annotated[str | None, model_option("The embedder; by default that of the vectors in DATA, else mini.")]
Preset = Annotated[
    str | None, option("--preset NAME", "A recipe: debug (tiny, from nothing), small, full, or a TOML file.")
]
Config = Annotated[
    str | None, option("--config FILE", "TOML with settings by the names of these flags; a flag given wins.")
]
Resume = Annotated[bool, option("--resume", "Go on from the last checkpoint of a killed run.")]
DryRun = Annotated[
    bool,
    option(
        "--dry-run", "Print parameters, tokens a step, memory, time, what the loader reads a second; train nothing."
    ),
]


def train(
    ctx: typer.Context,
    run: Run,
    stage: StageName,
    data: Data = None,
    output: Folder = None,
    model: Embedder = None,
    preset: Preset = None,
    config: Config = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    errors: Errors = None,
    seed: Seed = None,
    **settings: Any,
) -> Exit:
    """Train a dual encoder, a vision-language model, or a classifier.

    `contrastive` makes a dual encoder; `align`, `instruct` and `prefer`, one after the other, a vision-language model.
    `--from` carries one stage into the next. `head` makes a classifier of the vectors of an embedder.

    Data are checked before the first step: what cannot be used is counted, named and left out. Logs one JSON object a
    line on standard output. The folder holds a standard checkpoint at the end, that the other commands and
    transformers open; before that only checkpoints, from which --resume goes on after a kill.
    """
    from vlmkit.models.embedders.base import silence_libraries, torch_device
    from vlmkit.train.distributed import rank_zero_only

    silence_libraries()
    standing = {param.name: settings.pop(param.name) for param in set_by_file(ctx) if param.name in settings}
    if stage.value == CHECK:
        given = [value for value in (*settings.values(), output, model, preset, config) if value is not None]
        return _check(data or [], torch_device(run.device.value), given)
    chosen = Stage(stage.value)
    if chosen is Stage.HEAD:
        _refuse({"--preset": preset, "--resume": resume, "--dry-run": dry_run})
        data = data or (None if config or stdin_is_terminal() else ["-"])
    settings |= {
        "data": data,
        "out": Path(output) if output else Path() if dry_run else None,
        "batch_size": run.batch_size or None,
        "seed": seed,
        "workers": run.threads if run.workers or is_given(ctx, "workers") else None,
        "device": None if run.device is Device.AUTO else torch_device(run.device.value),
        "model": model,
        "preset": preset,
    }
    with Failures(errors) as failures, Output() as out:

        def emit(record: dict[str, Any]) -> None:
            out.write_records([record])

        with rank_zero_only():
            file = Path(config) if config else None
            named, device = settings.pop("preset", None), torch_device("auto")
            settled: Any = load_config(chosen, settings, named, file, device, standing)
        note = warn if not run.quiet else lambda text: None
        if dry_run:
            from vlmkit.train.estimate import estimate

            plan = estimate(settled, failures, run.quiet)
            if for_person(None):
                units = {"memory_gb": "memory in GiB"}
                print_facts({units.get(name, name.replace("_", " ")): value for name, value in plan.items()})
            else:
                emit(plan)
        else:
            importlib.import_module(RUNS.get(chosen, RUN)).train(settled, emit, failures, note, resume, run.quiet)
        return failures.exit_code()


def _refuse(given: dict[str, Any]) -> None:
    """Raise VlmkitError for options that are for what goes step by step."""
    for flag in (name for name, value in given.items() if value):
        raise VlmkitError(f"{flag} is not for head", f"leave it out, it is for {', '.join(TRAINED)}")


def _check(data: list[str], device: str, given: list[Any]) -> Exit:
    """Print what `inspect_folder` finds. Raises VlmkitError where something is wrong."""
    from vlmkit.train.inspect_folder import inspect_folder

    if len(data) != 1 or given:
        raise VlmkitError("check takes one trained folder, and no settings", "name it alone")
    wrong = []
    with Output() as out:
        for check, detail, remedy in inspect_folder(Path(data[0]), device):
            out.write_records([{"check": check, "ok": remedy is None, "detail": detail}])
            wrong += [(f"{check}: {detail}", remedy)] if remedy is not None else []
    if wrong:
        raise VlmkitError(f"{data[0]}: {wrong[0][0]}" + f", and {len(wrong) - 1} more" * (len(wrong) > 1), wrong[0][1])
    return Exit.OK


def _setting_options() -> dict[str, Any]:
    """An option, by field name, for each setting of any stage that has a help."""
    groups = {name: group for group, names in GROUPS.items() for name in names.split()}
    found: dict[str, Any] = {}
    for settings in SETTINGS.values():
        for name, setting in settings.items():
            if not setting["help"] or name in found:
                continue
            value = (*typing.get_args(TYPES[name]), TYPES[name])[0]
            flag = name_of(name)
            metavar = "|".join(setting["choices"]) or setting["unit"]
            spec = f"--{flag}/--no-{flag}" if value is bool else f"--{flag} {metavar}"
            named: dict[str, Any] = {"callback": named_model} if setting["unit"] == "M" else {}
            found[name] = Annotated[value | None, option(spec, setting["help"], group=groups[name], **named)]
    return found


def _signature() -> inspect.Signature:
    """The parameters of `train`, with an option for each setting in place of `**settings`."""
    *own, last = inspect.signature(train).parameters.values()
    made = [
        last.replace(name=name, kind=last.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _setting_options().items()
    ]
    own = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in own]
    return inspect.Signature([*own[:8], *made, *own[8:]])


train.__signature__ = _signature()  # type: ignore[attr-defined]


def _users(name: str) -> list[str]:
    """The stages that use an option; what all stages do, is shown without a stage, too, and check uses none."""
    stages = stages_with(name) or list(TRAINED)
    return ["", *stages] if {*TRAINED} <= {*stages} else list(stages)


def _describe(stage: str) -> Topic:
    if stage == CHECK:
        return Topic(STAGES[CHECK])
    return Topic(STAGES[Stage(stage)], {name: _default(Stage(stage), name) for name in SETTINGS_OF_ALL})


def _default(stage: Stage, name: str) -> str:
    """The default of a setting in a stage, as its help shows it."""
    if stage is Stage.CONTRASTIVE and name in ("lr", "weight_decay"):
        return "by the model"
    if name == "workers":
        return "0"
    if name == "lock":
        return "image with --vision or --text, else none"
    kinds = [kind for kind in KINDS if kind.stage is stage and name in SETTINGS[kind]]
    found = dict.fromkeys(_shown(f.default) for kind in kinds for f in fields(kind) if f.name == name)
    first, *locked = found or [""]
    if locked:
        return f"{first}; image tower locked: {locked[0]}"
    return f"{first}; with --lora {LORA_LR:g}" if name == "lr" and stage is not Stage.ALIGN else first


def _shown(default: Any) -> str:
    if default in (None, MISSING):
        return ""
    return (
        {True: "on", False: "off"}[default]
        if isinstance(default, bool)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )


SETTINGS_OF_ALL = list(dict.fromkeys(name for settings in SETTINGS.values() for name in settings if name != "device"))
train.topics = Topics(  # type: ignore[attr-defined]
    "Stages",
    _describe,
    {name: _users(name) for name in (*SETTINGS_OF_ALL, "preset", "resume", "dry_run")}
    | {name: ["", *Stage] for name in ("config", "output", "errors")},
    refuses=False,  # load_config does, for files of settings, too
)
