"""The command train; cli.py enters it in the command table."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmkit.cli.options import Device, Errors, Images, Run
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.terminal import Failures, Output, warn

if TYPE_CHECKING:
    from vlmkit.train.config import ContrastiveConfig, VlmConfig


class Stage(StrEnum):
    CONTRASTIVE = "contrastive"
    ALIGN = "align"
    INSTRUCT = "instruct"
    PREFER = "prefer"


def _option(flag: str, metavar: str, help: str, **rest: Any) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, **rest)


def train(
    run: Run,
    stage: Annotated[
        Stage, typer.Argument(metavar="STAGE", help="contrastive, align, instruct or prefer.", show_default=False)
    ],
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help="Records, LLaVA or COCO JSON, .tar shards, - for standard input; 2:DATA counts twice.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder to make; the model stands there at the end."),
    ] = None,
    preset: Annotated[
        str | None, _option("--preset", "NAME", "A recipe: debug (tiny, from nothing), small, full.")
    ] = None,
    config: Annotated[
        str | None, _option("--config", "FILE", "TOML with settings by the names of these flags; a flag given wins.")
    ] = None,
    vision: Annotated[
        str | None, _option("--vision", "M", "Vision tower: a CLIP or SigLIP model, mini, patches (none), or tiny.")
    ] = None,
    llm: Annotated[
        str | None, _option("--llm", "M", "Causal language model of transformers, by name or folder.")
    ] = None,
    text: Annotated[str | None, _option("--text", "M", "Text tower of contrastive training.")] = None,
    connector: Annotated[
        str | None, _option("--connector", "C", "mlp (LLaVA's), linear, qformer, cross-attention, adaptive.")
    ] = None,
    start: Annotated[
        str | None,
        _option("--from", "M", "Go on from what an earlier stage made, or mini; contrastive: any dual encoder."),
    ] = None,
    loss: Annotated[str | None, _option("--loss", "LOSS", "Contrastive loss: infonce (CLIP's) or siglip.")] = None,
    lock: Annotated[
        str | None, _option("--lock", "SIDE", "Tower of contrastive training that is not trained: image, text, none.")
    ] = None,
    captions: Annotated[
        int | None, _option("--captions", "N", "Captions of each picture in a contrastive batch.", min=1)
    ] = None,
    val: Annotated[
        str | None, _option("--val", "DATA", "Data to validate on, or a fraction of DATA to hold out, by its ids.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of a killed run.")] = False,
    epochs: Annotated[float | None, _option("--epochs", "N", "Times through the data.")] = None,
    steps: Annotated[int | None, _option("--steps", "N", "So many steps, whatever --epochs says.", min=1)] = None,
    accumulate: Annotated[
        int | None, _option("--accumulate", "N", "Parts that a batch is computed in, to save memory.", min=1)
    ] = None,
    lr: Annotated[float | None, _option("--lr", "RATE", "Peak learning rate.")] = None,
    projector_lr: Annotated[
        float | None, _option("--projector-lr", "RATE", "Peak learning rate of the projector.")
    ] = None,
    lora: Annotated[
        int | None, _option("--lora", "R", "Train adapters of rank R in the place of the language model.", min=1)
    ] = None,
    quantize: Annotated[
        str | None, _option("--quantize", "4bit", "Hold the frozen language model in 4 bits (QLoRA; CUDA only).")
    ] = None,
    save_steps: Annotated[
        int | None, _option("--save-steps", "N", "Checkpoint and validate every N steps.", min=1)
    ] = None,
    keep: Annotated[int | None, _option("--keep", "N", "Checkpoints to keep, beside the best.", min=1)] = None,
    early_stop: Annotated[
        int | None, _option("--early-stop", "N", "Stop after N validations without improvement.", min=1)
    ] = None,
    report_to: Annotated[str | None, _option("--report-to", "WHERE", "Also log to wandb or tensorboard.")] = None,
    fsdp: Annotated[
        bool | None, typer.Option("--fsdp", help="Under torchrun: shard the model over the GPUs (FSDP2), not copies.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, tokens a step, memory and time; train nothing.")
    ] = False,
    images: Images = None,
    errors: Errors = None,
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

    silence_libraries()
    flags = {
        "data": data,
        "out": Path(output) if output else Path() if dry_run else None,
        "vision": vision,
        "llm": llm,
        "text": text,
        "connector": connector,
        "start": start,
        "loss": loss,
        "lock": lock,
        "captions": captions,
        "val": _fraction(val),
        "epochs": epochs,
        "steps": steps,
        "accumulate": accumulate,
        "lr": lr,
        "projector_lr": projector_lr,
        "lora": lora,
        "quantize": quantize,
        "save_steps": save_steps,
        "keep": keep,
        "patience": early_stop,
        "report_to": report_to,
        "fsdp": fsdp,
        "images": images,
        "batch_size": run.batch_size or None,
        "seed": run.seed,
        "workers": run.workers or None,
        "device": None if run.device is Device.AUTO else torch_device(run.device.value),
    }
    file = Path(config) if config else None
    with Failures(errors) as failures, Output() as out:

        def emit(figures: dict[str, Any]) -> None:
            out.write_records([figures])

        from vlmkit.train.distributed import rank_zero_only

        settled: Any  # the stage's own kind of configuration
        contrastive = stage is Stage.CONTRASTIVE
        with rank_zero_only():
            settled = _contrastive(flags, preset, file) if contrastive else _settled(stage, flags, preset, file)
        note = warn if not run.quiet else lambda text: None
        if dry_run:
            from vlmkit.train.estimate import estimate_contrastive, estimate_vlm

            emit((estimate_contrastive if contrastive else estimate_vlm)(settled, failures, run.quiet))
        elif contrastive:
            from vlmkit.train.contrastive.run import train as train_contrastive

            train_contrastive(settled, emit, failures, note, resume, run.quiet)
        else:
            from vlmkit.train.vlm.run import train as train_vlm

            train_vlm(settled, emit, failures, note, resume, run.quiet)
        return failures.exit_code()


def _settled(stage: Stage, flags: dict[str, Any], preset: str | None, file: Path | None) -> "VlmConfig":
    from vlmkit.models.embedders.base import torch_device
    from vlmkit.train.config import VlmConfig, preset_of, read, resolve

    told = read(VlmConfig, file, preset=str) if file else {}
    of_file = told.pop("preset", None)
    preset = preset or of_file
    if told.get("stage", stage) != stage:
        raise VlmkitError(f"{file} is for {told['stage']}, not for {stage}", "name its stage, or another --config")
    begun = bool(flags["start"] or told.get("start"))
    recipe = preset_of(stage.value, preset, begun, bool(flags["lora"] or told.get("lora")))
    return resolve(VlmConfig, recipe | {"device": torch_device("auto")}, told, flags)


def _contrastive(flags: dict[str, Any], preset: str | None, file: Path | None) -> "ContrastiveConfig":
    from vlmkit.train.config import LitConfig, read, recipe_of, resolve

    told = read(LitConfig, file) if file else {}
    kind, recipe = recipe_of(preset, told | {name: value for name, value in flags.items() if value is not None})
    return resolve(kind, recipe, read(kind, file) if file else {}, flags)


def _fraction(val: str | None) -> float | str | None:
    try:
        return None if val is None else float(val)
    except ValueError:
        return val
