"""Runs a stage: from a configuration to a finished folder, or to one that --resume continues."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Protocol

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import Failures, steps_bar, warn
from vlmkit.train.checkpoints import begin, finishing, open_run, removed_unless_begun
from vlmkit.train.checks import check
from vlmkit.train.data.loader import explain_lost_worker
from vlmkit.train.data.mixture import Mixture
from vlmkit.train.data.report import show
from vlmkit.train.distributed import blind_hosts, deterministic, join_processes, leave_processes, rank, rank_zero_only
from vlmkit.train.trainer import CheckpointedTrainer, Log

CURVES = "runs"  # what --report-to tensorboard writes


class Stage(Protocol):
    """A stage whose data are read and whose model is open."""

    @property
    def steps(self) -> int: ...

    @property
    def data(self) -> list[tuple[str, str]]:
        """The name of each DATA, and a fingerprint of its rows."""

    def trainer(self, folder: Path, emit: Log) -> CheckpointedTrainer:
        """The trainer, with checkpoints in `folder`."""

    def save(self, trainer: CheckpointedTrainer, made: Path) -> None:
        """Write the chosen weights as a model into `made`, whose files go to the output folder."""

    def card(self, trainer: CheckpointedTrainer) -> str:
        """The text of README.md."""


Prepare = Callable[[Any, Failures, bool], AbstractContextManager[Any]]  # of a `Stage`


def run_stage(
    prepare: Prepare,
    config: Any,
    emit: Log,
    failures: Failures,
    note: Callable[[str], None],
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Run the stage that `prepare(config, failures, quiet)` opens; the model is in `config.out` at the end.

    `emit` gets each logged object, `note` a line for the user. Raises VlmkitError; there are checkpoints then, or
    nothing was left in the folder.
    """
    with ExitStack() as stack:
        stack.enter_context(deterministic(config.device))
        with rank_zero_only():
            check(config)
            join_processes(config.device)
            check_shared(config, resume)
            start = begin(config, resume)
            if start.finished:
                note(f"{config.out} is already finished")
                leave_processes()
                return config.out
            stack.enter_context(removed_unless_begun(config))
            stage: Stage = stack.enter_context(prepare(config, failures, quiet))
            folder = open_run(config, stage.data, start.checkpoint is not None)
            report = reporter(config.report_to if rank() == 0 else None, config.out / CURVES)

            def log(record: dict[str, Any]) -> None:
                emit(record)
                report(record)

            trainer = stage.trainer(folder, log)
            if start.checkpoint:
                note(f"going on from step {start.checkpoint.name.rpartition('-')[2]} of {stage.steps}")
        with steps_bar(stage.steps, quiet=quiet or rank() > 0) as on_step, explain_lost_worker():
            trainer.run(start.checkpoint, on_step)
        if rank() == 0:
            with finishing(config) as made:
                stage.save(trainer, made)
                plot_losses(trainer.state.log_history, made / "loss.png")
                (made / "README.md").write_text(stage.card(trainer))
    leave_processes()
    return config.out


def check_shared(config: Any, resume: bool) -> None:
    """Tell that hosts have no disk in common, which checkpoints need. Raises VlmkitError where the run needs it."""
    place = config.out.absolute().parent
    if not (hosts := blind_hosts(place)):
        return
    what = f"{place} is another folder on {', '.join(hosts)} than for the first process"
    if resume or config.saves_shards():
        raise VlmkitError(
            f"{what}, and {'--resume reads' if resume else 'shards of checkpoints need'} one for all",
            "name a folder on a disk that all nodes share",
        )
    warn(f"{what}: this run can end, but --resume will refuse: use a disk that all nodes share")


def show_data(training: Mixture[Any], validation: Mixture[Any] | None, held_out: bool) -> None:
    """Report the rows read of the data, and how many samples were `held_out` for validation."""
    show(training.table)
    if validation and not held_out:
        show(validation.table)
    elif validation:
        warn(f"{len(validation.rows)} of these samples held out for validation, {len(training.rows)} to train on")


def fingerprints(training: Mixture[Any], validation: Mixture[Any] | None) -> list[tuple[str, str]]:
    """The name of each DATA, and a fingerprint of its rows."""
    table = training.table
    if validation is not None and validation.table is not table:
        table = [*table, *validation.table]
    return [(counts.name, counts.fingerprint) for counts in table]


def split_data(
    read: Callable[[list[str]], Mixture[Any]], data: list[str], val: str | float | None
) -> tuple[Mixture[Any], Mixture[Any] | None]:
    """(training, validation): `val` is other data, the share of `data` to hold out, or None."""
    training = read(data)
    if isinstance(val, float):
        return training.split(val)
    return training, read([val]) if val else None


def plot_losses(history: list[dict[str, Any]], path: Path) -> None:
    """Draw the training loss, and the validation loss if there is one, over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = sorted({entry["step"]: entry[key] for entry in history if key in entry}.items())
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def reporter(service: str | None, folder: Path) -> Log:
    """A function that sends each logged object to `service`, for the run in the folder above `folder`, if any.

    Raises VlmkitError where its package is not installed.
    """
    if service is None:
        return lambda record: None
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()
    kind: Any = LOGGER_TYPE_TO_CLASS[service]
    arguments = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
    try:
        tracker = kind(folder.parent.name, **arguments)
        tracker.start()
    except ImportError as error:
        raise VlmkitError(f"the package {error.name or service} is not installed", f"pip install {service}") from None

    def report(record: dict[str, Any]) -> None:
        tracker.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])

    return report
