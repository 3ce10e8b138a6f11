"""The trainer of all four stages: transformers' `Trainer` by its public hooks, for runs that may be killed any time."""

import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerControl, TrainerState

from vlmkit.errors import VlmkitError
from vlmkit.train.checkpoints import (
    PARTIAL,
    checkpoint_of,
    commit_checkpoint,
    drop_old_checkpoints,
    explain_full_disk,
    load_trained,
    save_trained,
    save_trained_shards,
    trained_parameters,
)
from vlmkit.train.distributed import rank, wait, world
from vlmkit.train.sharding import units

Log = Callable[[dict[str, Any]], None]


def save_steps(config: Any, steps: int) -> int:
    """Steps between two checkpoints of a run of `steps`: a tenth of it unless set."""
    return config.save_steps or max(1, -(-steps // 10))


def training_arguments(config: Any, folder: Path, steps: int) -> dict[str, Any]:
    """What all stages set of transformers' TrainingArguments; checkpoints go to `folder`. `steps` make one epoch."""
    return {
        "output_dir": str(folder / PARTIAL),
        "num_train_epochs": 1,
        "max_grad_norm": config.clip,
        "logging_steps": config.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_steps": save_steps(config, steps),
        "report_to": "none",
        "seed": config.seed,
        "use_cpu": config.device == "cpu",
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
        "remove_unused_columns": False,
    }


def parameter_groups(model: nn.Module, rate_of: Callable[[str], Any], weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters of `model` by the rate of their names; no decay for biases, norms and scalars."""
    groups: dict[tuple[Any, float], list[Tensor]] = {}
    for name, parameter in trained_parameters(model).items():
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate_of(name), decay), []).append(parameter)
    return [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in groups.items()]


def checked(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, if it could be read; if not, it has its `error` in it. Raises VlmkitError."""
    if "error" in batch:
        raise batch["error"]
    return batch


class CheckpointedTrainer(Trainer):
    """A `Trainer` whose checkpoints are complete or absent and whose log is one JSON object a step.

    A checkpoint holds what is trained, and is loaded strictly: `Trainer` itself loads with strict=False, and so loses
    a LLaVA's projector (transformers issues 43701, 48805). A loss that is not finite stops the run and names the
    samples of the batch. Validation comes with each checkpoint; the best one is kept.
    """

    model: nn.Module
    monitored = "eval_loss"  # the metric of a validation that decides which one is the best
    higher_is_better = False
    keep_best = True  # whether the best weights are the result, not the last
    validates_first = False  # before the first step

    def __init__(self, *args: Any, config: Any, validates: bool, emit: Log, **rest: Any) -> None:
        """`emit` gets each logged object, in the first process."""
        self.config, self.validates, self.emit = config, validates, emit
        self.counts: dict[str, float] = {}  # what was trained on since the last logged step
        self.watched: list[tuple[Tensor, int, Sequence[str]]] = []  # losses nobody looked at: with step and samples
        self.since = time.perf_counter()
        self.saving: str | None = None  # the checkpoint that is being written
        if rest["args"].device.type == "cuda":
            rest["args"]._n_gpu = 1  # `Trainer` would split each batch over all GPUs of the machine (nn.DataParallel)
        super().__init__(*args, **rest)
        self.folder = Path(self.args.output_dir or ".").parent
        self.remove_callback(PrinterCallback)
        if config.device == "cuda" and config.computes_in() != "fp32":
            torch.set_float32_matmul_precision("high")  # TF32, for what autocast leaves in float32

    @property
    def trained_model(self) -> nn.Module:
        """Whose trained weights a checkpoint holds."""
        return self.model

    @property
    def epoch(self) -> int:
        """The pass through the data that the last step was in, from 1. To `Trainer` the whole run is one epoch."""
        raise NotImplementedError

    def validates_at(self, step: int) -> bool:
        """Whether a validation follows this step."""
        return step % self.args.save_steps == 0 or step == self.state.max_steps

    def extra_metrics(self) -> dict[str, float]:
        """More of the last step to log."""
        return {}

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of a step, and what their losses are divided by. Raises VlmkitError if one is damaged."""
        batches = [checked(batch) for batch in islice(epoch_iterator, num_batches)]
        return batches, self.loss_divisor(batches, device)

    def loss_divisor(self, batches: list[Any], device: torch.device) -> Tensor | None:
        """What the losses of a step are divided by; None: each is a mean already."""
        return None

    def watch(self, loss: Tensor, names: Sequence[str], **counts: float) -> None:
        """Count a micro-batch. Its loss is looked at later, by `check_losses`: that waits for the GPU."""
        self.watched.append((loss.detach(), self.state.global_step + 1, names))
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count

    def check_losses(self) -> None:
        """Raises VlmkitError if a loss since the last call is not finite."""
        watched, self.watched = self.watched, []
        if not watched or torch.stack([loss for loss, *_ in watched]).isfinite().all():
            return
        loss, step, names = next(each for each in watched if not each[0].isfinite())
        where = f"step {step}" + (f", process {rank()}" if rank() else "")
        what = f"the loss is {float(loss)} at {where}, samples {', '.join(names)}"
        raise VlmkitError(what, "try a lower rate, in a new folder")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Emit one JSON object: step, loss, lr, grad_norm, epoch, and what was done a second since the last one."""
        if "train_runtime" in logs:
            return
        if "loss" in logs:
            logs |= self.extra_metrics()
        super().log(logs, start_time)
        record: dict[str, Any] = {"step": self.state.global_step}
        record |= {_logged_name(name): value for name, value in logs.items()} | {"epoch": self.epoch}
        now = time.perf_counter()
        if "loss" in logs:
            seconds = max(now - self.since, 1e-9)
            record |= {f"{name}_per_s": round(count * world() / seconds, 1) for name, count in self.counts.items()}
            record["memory_gb"] = round(peak_memory_gb(), 3)
        self.counts, self.since = {}, now
        if self.is_world_process_zero():
            self.emit(record)

    def run(self, checkpoint: Path | None, on_step: Callable[[int], None]) -> None:
        """Train, from `checkpoint` on if there is one; a run that had stopped early goes no further.

        `on_step` gets the number of steps that are done. Raises VlmkitError where the disk is full.
        """
        self.add_callback(_RunCallback(self, checkpoint, on_step))
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)) if checkpoint else None
        try:
            if state and self.has_stopped_early(state):
                self.state = state
            else:
                with explain_full_disk(lambda: self.saving, self.folder):
                    self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            if self.args.should_save:
                shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)

    def has_stopped_early(self, state: TrainerState) -> bool:
        """Whether as many validations as --early-stop says were no better than one before them."""
        found = self._monitored(state)
        return bool(found and self.config.patience) and len(found) - 1 - found.index(max(found)) >= self.config.patience

    def _monitored(self, state: TrainerState) -> list[tuple[float, int]]:
        """(metric, the higher the better; minus its step) of each validation after the first step."""
        sign = 1 if self.higher_is_better else -1
        entries = [entry for entry in state.log_history if self.monitored in entry and entry["step"]]
        return [(sign * entry[self.monitored], -int(entry["step"])) for entry in entries]

    @property
    def best_step(self) -> int | None:
        """That of the best validation, of equal ones the first."""
        return -max(found)[1] if (found := self._monitored(self.state)) else None

    @property
    def chosen(self) -> Path:
        """The checkpoint whose weights are the run's result."""
        step = (self.best_step if self.keep_best else None) or self.state.global_step
        return checkpoint_of(self.folder, step)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what is trained into `output_dir`: `Trainer` begins a checkpoint so."""
        self.saving = f"the checkpoint of step {self.state.global_step}"
        folder = Path(output_dir or self.folder)
        if units(self.model):
            save_trained_shards(self.trained_model, self.optimizer, folder)  # type: ignore[arg-type]
        else:
            save_trained(self.trained_model, folder)

    def commit(self) -> None:
        """Give the checkpoint that was just written its place, and remove old ones."""
        wait()
        if self.args.should_save:
            commit_checkpoint(self.folder, self.state.global_step)
            drop_old_checkpoints(self.folder, self.config.keep, self.best_step)
        self.saving = None
        wait()


class _RunCallback(TrainerCallback):
    """What `trainer` does between the steps; it starts from `checkpoint`, if there is one."""

    def __init__(self, trainer: CheckpointedTrainer, checkpoint: Path | None, on_step: Callable[[int], None]) -> None:
        self.trainer, self.checkpoint, self.on_step = trainer, checkpoint, on_step

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.checkpoint:
            load_trained(self.trainer.trained_model, self.checkpoint, self.trainer.optimizer)
        elif self.trainer.validates and self.trainer.validates_first:
            self.trainer.evaluate()
        self.on_step(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_step(state.global_step)
        control.should_log |= state.global_step >= state.max_steps
        control.should_evaluate = self.trainer.validates and self.trainer.validates_at(state.global_step)
        waits = control.should_log or control.should_evaluate or control.should_save
        if waits or args.device.type == "cpu":
            self.trainer.check_losses()

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step:
            control.should_save |= self.trainer.keep_best and self.trainer.best_step == state.global_step
            control.should_training_stop |= self.trainer.has_stopped_early(state)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.commit()


def _logged_name(name: str) -> str:
    """What is logged for a name of `Trainer`."""
    if name == "learning_rate":
        return "lr"
    return f"val_{name.removeprefix('eval_')}" if name.startswith("eval_") else name


def peak_memory_gb() -> float:
    """The most memory used so far, on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
