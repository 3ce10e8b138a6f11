"""`vlmkit train contrastive`: from a configuration to a folder that `vlmkit embed` opens."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import Failures
from vlmkit.train.blocks import compile_blocks
from vlmkit.train.checkpoints import load_trained
from vlmkit.train.config import ContrastiveConfig, LitConfig, is_from_scratch
from vlmkit.train.contrastive.gradcache import full_batch_gradient
from vlmkit.train.contrastive.losses import Objective
from vlmkit.train.contrastive.model import ContrastiveModel, DualEncoder, Rate
from vlmkit.train.contrastive.packaged_towers import packaged_towers
from vlmkit.train.contrastive.sampler import Batch, BatchStream, Pictures, batches, read_pictures, run_batches
from vlmkit.train.contrastive.two_towers import LockedImageTuning
from vlmkit.train.data.samples import Captioned
from vlmkit.train.distributed import broadcast_object, rank, world
from vlmkit.train.model_card import contrastive_card
from vlmkit.train.run import fingerprints, run_stage, show_data, split_data
from vlmkit.train.schedule import lowest_share, rate_share, schedule_of
from vlmkit.train.tiny_models import joined_towers, new_model
from vlmkit.train.trainer import CheckpointedTrainer, Log, parameter_groups, training_arguments

Note = Callable[[str], None]


LOGGED_FIRST = ("epoch", "step", "loss", "lr", "text_lr")


def share_after(rate: Rate, done: int, steps: int, config: ContrastiveConfig) -> float:
    """The share of the peak of `rate` after `done` of `steps` steps; the first step that it has is above 0."""
    own = steps - rate.start
    rising = max(1, round(config.warmup * own))
    return rate_share(done + 1 - rate.start, own, rising, config.schedule, lowest_share(rate.peak, config.min_lr))


def optimizer_for(model: ContrastiveModel, config: ContrastiveConfig) -> torch.optim.AdamW:
    """AdamW, with betas and epsilon of CLIP's vision transformers (Radford and others, 2021, table 20).

    A group knows the name of its rate, and for how many first steps it rests.
    """
    groups = parameter_groups(model.model, model.rate_of, config.weight_decay)
    for group in groups:
        rate: Rate = group["lr"]
        group |= {"lr": rate.peak, "rate": rate.name, "start": rate.start}
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)


@dataclass(frozen=True, slots=True)
class Ids(Sequence[str]):
    """The ids of `pictures` with these `numbers`, looked up when somebody asks."""

    pictures: Sequence[Captioned]
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        return self.pictures[int(self.numbers[place])].id


class ContrastiveTrainer(CheckpointedTrainer):
    """Takes steps over all pairs of a batch, computed in parts, and validates by the mean recall."""

    model: ContrastiveModel
    monitored = "mean_recall"
    higher_is_better = True
    validates_first = True

    def __init__(
        self,
        model: ContrastiveModel,
        stream: BatchStream,
        pictures: Sequence[Captioned],
        note: Note,
        folder: Path,
        **rest: Any,
    ) -> None:
        config: ContrastiveConfig = rest["config"]
        self.stream, self.pictures, self.note = stream, pictures, note
        self.objective: Objective = Objective(model.model, config.loss, model.from_scratch)
        optimizer = optimizer_for(model, config)
        optimizer.register_step_post_hook(lambda *_: self.objective.clamp())
        self.rates = [Rate(group["rate"], group["lr"], group["start"]) for group in optimizer.param_groups]
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.keep_best = config.best
        self.batch: Batch | None = None
        self.loss = torch.tensor(math.nan)
        rates = iter(self.rates)
        share = partial(share_after, steps=len(stream), config=config)
        schedule = schedule_of(optimizer, lambda _: partial(share, next(rates)))
        arguments = TrainingArguments(**training_arguments(config, folder, len(stream)), per_device_train_batch_size=1)
        if config.compile:
            compile_blocks(model.model)
        super().__init__(model, args=arguments, train_dataset=stream, optimizers=(optimizer, schedule), **rest)
        torch.manual_seed(config.seed + rank())  # each process drops out other units

    @property
    def epoch(self) -> int:
        return self.batch.epoch if self.batch else 0

    def run(self, checkpoint: Path | None, on_step: Callable[[int], None]) -> None:
        try:
            super().run(checkpoint, on_step)
        finally:
            self.stream.close()

    def get_train_dataloader(self) -> DataLoader:
        """All batches of the run, as one epoch; the stream reads ahead."""
        return DataLoader(self.stream, batch_size=1, collate_fn=lambda items: items[0])

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The gradient of one batch, summed over all processes by itself: `model`, DDP's wrapper, is left out."""
        self.model.train()
        batch: Batch = inputs["batch"]
        sizes = [len(share.pictures) for share in batch.parts(world())]
        self.loss = full_batch_gradient(self.model.embed, inputs["parts"], self.objective, self.trained, sizes)
        self.batch = batch
        self.watch(self.loss, Ids(self.pictures, batch.pictures), samples=len(batch.pictures) / world())
        return self.loss.to(self.args.device)

    def extra_metrics(self) -> dict[str, float]:
        """Loss and rates of the last step itself, and the scale."""
        done, steps = self.state.global_step - 1, len(self.stream)
        rates = {rate.name: rate.peak * share_after(rate, done, steps, self.config) for rate in self.rates}
        return {"loss": self.loss.item()} | rates | self.objective.metrics()

    def validates_at(self, step: int) -> bool:
        by_steps = self.config.save_steps is not None and step % self.config.save_steps == 0
        return by_steps or (self.batch is not None and self.batch.ends_epoch)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Retrieval on the validation data, as the first process finds it."""
        found = broadcast_object(self.model.validate(self.state.global_step))
        recall = sum(value for name, value in found.items() if name != "gap") / (len(found) - 1)
        before = [entry["mean_recall"] for entry in self.state.log_history if "mean_recall" in entry]
        if before and recall < before[0] and not (len(before) > 1 and before[-1] < before[0]):
            what = f"retrieval fell below that of before step 1 (mean recall {recall:.3f} < {before[0]:.3f})"
            self.note(f"warning: {what}: a lower --lr keeps what the model knows")
        metrics = found | {"mean_recall": round(recall, 6)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@dataclass(frozen=True, slots=True)
class Plan:
    """The pictures, and in which batches they come."""

    config: ContrastiveConfig
    training: Pictures
    validation: Pictures | None

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Those of an epoch, from 1."""
        c = self.config
        rows: Any = self.training.rows
        times, least = self.training.times(epoch - 1), max(2, world())
        return batches(rows.counts, c.batch_size, c.augmentations, c.captions, c.seed, epoch, times, least)

    def per_epoch(self) -> int:
        """Batches in the first epoch; where weights are fractions, others may have one more or less."""
        return sum(1 for _ in self.batches(1))


def plan(config: ContrastiveConfig, failures: Failures, quiet: bool = False) -> Plan:
    """Read and check the data. Raises VlmkitError."""
    read = partial(read_pictures, failures=failures, images=config.images, limit=config.limit, quiet=quiet)
    made = Plan(config, *split_data(read, config.data, config.val))
    if not made.per_epoch():
        raise VlmkitError("a batch needs at least two pictures", "give more data, or a larger --batch-size")
    return made


def steps_of(config: ContrastiveConfig, made: Plan) -> int:
    """The steps of the run."""
    return config.steps or max(1, round(config.epochs * made.per_epoch()))


@contextmanager
def open_model(config: ContrastiveConfig, made: Plan, steps: int) -> Iterator[ContrastiveModel]:
    """What is trained, ready to train; it is saved within the block. Raises VlmkitError."""
    training, validation = made.training.rows, made.validation.rows if made.validation else []
    torch.manual_seed(config.seed)
    with ExitStack() as stack:
        from_scratch = False
        if config.start is not None:
            start, from_scratch = config.start, is_from_scratch(config.start)
            if from_scratch:
                start = stack.enter_context(new_model(start, training))
        else:
            towers = stack.enter_context(packaged_towers(config.vision or "", config.text or ""))
            if isinstance(config, LitConfig):
                last = min(steps, config.text_epochs * made.per_epoch()) if config.text_layers else 0
                yield LockedImageTuning(config, towers, training, validation, steps - last)
                return
            start = stack.enter_context(joined_towers(*towers, config.dim))
        yield DualEncoder(config, start, from_scratch, training, validation)


@dataclass(slots=True)
class ContrastiveStage:
    """A run that is ready to train."""

    plan: Plan
    model: ContrastiveModel
    steps: int
    note: Note

    @property
    def data(self) -> list[tuple[str, str]]:
        return fingerprints(self.plan.training, self.plan.validation)

    def trainer(self, folder: Path, emit: Log) -> ContrastiveTrainer:
        validates = self.plan.validation is not None
        stream = BatchStream(partial(run_batches, self.plan.batches, self.steps), self.model.load, self.steps)
        how: dict[str, Any] = {"config": self.plan.config, "emit": emit, "validates": validates}
        return ContrastiveTrainer(self.model, stream, self.plan.training.rows, self.note, folder, **how)

    def save(self, trainer: CheckpointedTrainer, made: Path) -> None:
        load_trained(self.model, trainer.chosen)
        self.model.eval()
        self.model.save(made, self.plan.config.out)

    def card(self, trainer: CheckpointedTrainer) -> str:
        history, step = trainer.state.log_history, int(trainer.chosen.name.rpartition("-")[2])
        return contrastive_card(self.plan.config, self.plan.training.table, history, step)


@contextmanager
def prepare(config: ContrastiveConfig, failures: Failures, quiet: bool, note: Note) -> Iterator[ContrastiveStage]:
    """Read the data and open the model. Raises VlmkitError."""
    made = plan(config, failures, quiet)
    if not quiet:
        show_data(made.training, made.validation, isinstance(config.val, float))
    steps = steps_of(config, made)
    with open_model(config, made, steps) as model:
        yield ContrastiveStage(made, model, steps, note)


def train(
    config: ContrastiveConfig,
    emit: Log,
    failures: Failures | None = None,
    note: Note = lambda _: None,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Run the stage (see `run_stage`). Without `failures` nothing is reported of the data."""
    stage = partial(prepare, note=note)

    def emit_in_order(record: dict[str, Any]) -> None:
        emit({key: record[key] for key in LOGGED_FIRST if key in record} | record)

    return run_stage(stage, config, emit_in_order, failures or Failures(), note, resume, quiet or failures is None)
