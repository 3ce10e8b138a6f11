"""The command train; cli/app.py enters it in the command table."""

import inspect
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmkit.cli.options import Device, Errors, Run, option
from vlmkit.errors import Exit
from vlmkit.io.terminal import Failures, Output, warn
from vlmkit.train.config import SETTINGS, TYPES, Stage, load_config, name_of, stages_with

StageName = Annotated[
    Stage, typer.Argument(metavar="STAGE", help="contrastive, align, instruct or prefer.", show_default=False)
]
Data = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA",
        help="Records, LLaVA or COCO JSON, .tar shards, - for standard input; 2:DATA counts twice.",
        show_default=False,
    ),
]
Folder = Annotated[str | None, option("-o, --output DIR", "Folder to make; the model stands there at the end.")]
Preset = Annotated[
    str | None, option("--preset NAME", "A recipe: debug (tiny, from nothing), small, full, or a TOML file.")
]
Config = Annotated[
    str | None, option("--config FILE", "TOML with settings by the names of these flags; a flag given wins.")
]
Resume = Annotated[bool, option("--resume", "Go on from the last checkpoint of a killed run.")]
DryRun = Annotated[bool, option("--dry-run", "Print parameters, tokens a step, memory and time; train nothing.")]


def train(
    run: Run,
    stage: StageName,
    data: Data = None,
    output: Folder = None,
    preset: Preset = None,
    config: Config = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    errors: Errors = None,
    **settings: Any,
) -> Exit:
    """Train a dual encoder or a vision-language model, stage by stage.

    `contrastive` trains a dual encoder from pictures with captions. `align` trains the projector between a vision tower
    and a language model on captions, `instruct` the projector and the language model on questions and conversations,
    `prefer` on pairs of a chosen and a rejected answer (DPO). `--from` carries one stage into the next.

    Data are checked before the first step: what cannot be used is counted, named and left out. Logs one JSON object a
    line on standard output. The folder holds a standard checkpoint at the end, that the other commands and
    transformers open; before that only checkpoints, from which --resume goes on after a kill.
    """
    from vlmkit.models.embedders.base import silence_libraries, torch_device
    from vlmkit.train.distributed import rank_zero_only

    silence_libraries()
    settings |= {
        "data": data,
        "out": Path(output) if output else Path() if dry_run else None,
        "batch_size": run.batch_size or None,
        "seed": run.seed,
        "workers": run.workers or None,
        "device": None if run.device is Device.AUTO else torch_device(run.device.value),
    }
    with Failures(errors) as failures, Output() as out:

        def emit(record: dict[str, Any]) -> None:
            out.write_records([record])

        with rank_zero_only():
            file = Path(config) if config else None
            settled: Any = load_config(stage, settings, preset, file, torch_device("auto"))
        note = warn if not run.quiet else lambda text: None
        if dry_run:
            from vlmkit.train.estimate import estimate

            emit(estimate(settled, failures, run.quiet))
        elif stage is Stage.CONTRASTIVE:
            from vlmkit.train.contrastive.run import train as train_contrastive

            train_contrastive(settled, emit, failures, note, resume, run.quiet)
        else:
            from vlmkit.train.vlm.run import train as train_vlm

            train_vlm(settled, emit, failures, note, resume, run.quiet)
        return failures.exit_code()


def _setting_options() -> dict[str, Any]:
    """An option, by field name, for each setting of any stage that has a help."""
    found: dict[str, Any] = {}
    for settings in SETTINGS.values():
        for name, setting in settings.items():
            if not setting["help"] or name in found:
                continue
            value = (*typing.get_args(TYPES[name]), TYPES[name])[0]
            flag, stages = name_of(name), stages_with(name)
            metavar = "|".join(setting["choices"]) or setting["unit"]
            spec = f"--{flag}/--no-{flag}" if value is bool else f"--{flag} {metavar}"
            only = "" if len(stages) == len(Stage) else f" Only {', '.join(stages)}."
            found[name] = Annotated[value | None, option(spec, setting["help"] + only)]
    return found


def _signature() -> inspect.Signature:
    """The parameters of `train`, with an option for each setting in place of `**settings`."""
    *own, last = inspect.signature(train).parameters.values()
    made = [
        last.replace(name=name, kind=last.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _setting_options().items()
    ]
    own = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in own]
    return inspect.Signature([*own[:6], *made, *own[6:]])


train.__signature__ = _signature()  # type: ignore[attr-defined]
