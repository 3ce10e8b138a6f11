"""What a run tells: one JSON object a logged step.

The losses of a run as a picture.

`--report-to`: the same figures that are logged, to a service or a folder for looking at curves.

What a transformers `Trainer` lacks for runs that may be killed at any moment: see `CheckpointedTrainer`.
"""

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

from vlmkit.errors import VlmkitError
from vlmkit.train.checkpoints import PARTIAL, checkpoint_of, drop_old, staged
from vlmkit.train.config import TRACKERS
from vlmkit.train.distributed import rank

Log = Callable[[dict[str, Any]], None]


def memory_gb() -> float:
    """The most memory used so far, on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


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


def reporter(where: str | None, folder: Path) -> Log:
    """What takes each logged object, of the run in the folder above `folder`; nothing is done with `where` None.

    Raises VlmkitError for what is not there.
    """
    if where is None:
        return lambda figures: None
    if where not in TRACKERS:
        raise VlmkitError(f"unknown --report-to {where}", f"use {' or '.join(TRACKERS)}")
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()
    kind: Any = LOGGER_TYPE_TO_CLASS[where]
    arguments = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
    name = folder.parent.name
    try:
        tracker = kind(name, **arguments)
        tracker.start()
    except ImportError as error:
        raise VlmkitError(f"the package {error.name or where} is not installed", f"pip install {where}") from None

    def report(figures: dict[str, Any]) -> None:
        tracker.log({key: value for key, value in figures.items() if key != "step"}, step=figures["step"])

    return report


WEIGHTS = "trained.safetensors"


class CheckpointedTrainer(Trainer):
    """A `Trainer` whose checkpoints are complete or absent and whose log is one JSON object a step.

    A checkpoint holds what is trained, and is loaded strictly: `Trainer` itself loads with strict=False, and so loses
    a LLaVA's projector (transformers issues 43701, 48805). A loss that is not finite stops the run and names the batch.
    """

    model: nn.Module

    def __init__(self, *args: Any, emit: Log, keep: int, patience: int | None, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.remove_callback(PrinterCallback)
        self.add_callback(_LastStep())
        self.emit, self.keep, self.patience = emit, keep, patience
        self.folder = Path(self.args.output_dir or ".")
        self.seen = {"tokens": 0, "samples": 0}
        self.since = time.perf_counter()

    @property
    def core(self) -> nn.Module:
        """Whose trained weights a checkpoint holds."""
        return self.model

    @property
    def epoch(self) -> int:
        """The time through the data that the last step was in, from 1."""
        return math.ceil(self.state.epoch or 0)

    def watch(self, loss: Tensor, names: tuple[str, ...], tokens: int) -> None:
        """Count a micro-batch. Raises VlmkitError if its loss is not finite."""
        if not math.isfinite(value := float(loss.detach())):
            where = f"step {self.state.global_step + 1}" + (f", process {rank()}" if rank() else "")
            what = f"the loss is {value} at {where}, samples {', '.join(names)}"
            raise VlmkitError(what, "try a lower rate, in a new folder")
        self.seen["tokens"] += tokens
        self.seen["samples"] += len(names)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One JSON object: step, epoch, loss, lr, grad_norm and the rates since the one before."""
        super().log(logs, start_time)
        record: dict[str, Any] = {"step": self.state.global_step}
        record |= {_shown(name): value for name, value in logs.items()} | {"epoch": self.epoch}
        if "loss" in logs:
            seconds = max(time.perf_counter() - self.since, 1e-9)
            world = self.args.world_size
            record |= {f"{name}_per_s": round(count * world / seconds, 1) for name, count in self.seen.items()}
            record["memory_gb"] = round(memory_gb(), 3)
            self.seen, self.since = {"tokens": 0, "samples": 0}, time.perf_counter()
        if "train_runtime" not in record and self.is_world_process_zero():
            self.emit(record)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        better = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= better
        self.control.should_training_stop |= self._stops(self.state)
        return better

    def _stops(self, state: TrainerState) -> bool:
        """Whether the validation loss has not improved for `patience` validations."""
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if self.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.patience

    def run(self, checkpoint: Path | None) -> None:
        """Train, from `checkpoint` on if there is one, and go back to the weights with the least validation loss.

        A run that had stopped early is not gone on with.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)) if checkpoint else None
        if state and checkpoint and self._stops(state):
            self.state = state
            load_trained(self.core, checkpoint)
        else:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.state.best_global_step:
            load_trained(self.core, self.chosen)

    @property
    def chosen(self) -> Path:
        """The checkpoint whose weights are the run's result."""
        return checkpoint_of(self.folder, self.state.best_global_step or self.state.global_step)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / PARTIAL)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        if checkpoint_of(self.folder, step).exists():
            return
        with staged(self.folder, step, self.args.should_save):
            super()._save_checkpoint(model, trial)
        if self.args.should_save:
            drop_old(self.folder, self.keep, self.state.best_global_step)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What is trained, whole, also where processes hold shards of it."""
        weights = {name: _whole(value) for name, value in trained(self.core).items()}
        if self.args.should_save:
            folder = Path(output_dir or self.folder)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self.core, Path(resume_from_checkpoint))


class EachStep(TrainerCallback):
    """Tells `show` the number of steps that are done."""

    def __init__(self, show: Callable[[int], None]) -> None:
        self.show = show

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.show(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.show(state.global_step)


class _LastStep(TrainerCallback):
    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != IntervalStrategy.NO


def _shown(name: str) -> str:
    """What a figure of `Trainer` is called in the log."""
    if name == "learning_rate":
        return "lr"
    return f"val_{name.removeprefix('eval_')}" if name.startswith("eval_") else name


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of `model` that are trained, each once."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Load into `model` what `save_model` wrote, all of it. Raises VlmkitError where the names differ."""
    weights, places = load_file(checkpoint / WEIGHTS), trained(model)
    if weights.keys() != places.keys():
        odd = min(weights.keys() ^ places.keys())
        raise VlmkitError(f"{checkpoint} is of another run ({odd})", "resume with the options it was begun with")
    with torch.no_grad():
        for name, place in places.items():
            value = weights[name].to(place.device)
            if isinstance(place, DTensor):
                from torch.distributed.tensor import distribute_tensor

                place.copy_(distribute_tensor(value, place.device_mesh, place.placements))
            else:
                place.copy_(value)


def _whole(value: Tensor) -> Tensor:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().cpu().contiguous()
