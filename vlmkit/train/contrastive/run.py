"""One optimisation step at a time: AdamW, cosine rate with warm-up.

A run from its first to its last step: log, validation, checkpoints, early stop.

`vlmkit train contrastive`: from a configuration to a folder that `vlmkit embed` opens.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import Failures, warn
from vlmkit.train.checkpoints import (
    CURVES,
    State,
    begin,
    checkpoint_of,
    finishing,
    last_checkpoint,
    load_checkpoint,
    load_weights,
    open_run,
    save_checkpoint,
    wait,
)
from vlmkit.train.config import ContrastiveConfig, LitConfig, check, is_from_scratch
from vlmkit.train.contrastive.gradcache import Embed, Peak, full_batch_gradient
from vlmkit.train.contrastive.losses import Objective
from vlmkit.train.contrastive.model import Learner
from vlmkit.train.contrastive.sampler import Batch, Pictures, batches, read_pictures
from vlmkit.train.data.report import show
from vlmkit.train.distributed import agreed, deterministic, processes, rank, world
from vlmkit.train.model_card import contrastive_card
from vlmkit.train.trainer import Log, memory_gb, plot_losses, reporter


def rate(step: int, steps: int, warmup: float) -> float:
    """The share of the peak rate at `step` (from 1) of `steps`: linear warm-up, then half a cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step <= rising:
        return step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def optimizer_for(model: nn.Module, peak: Callable[[str], Peak], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what is not locked, each parameter at the rate of its name; no decay for biases, norms, the scale.

    Betas and epsilon are CLIP's for its vision transformers (Radford and others, 2021, table 20).
    """
    groups: dict[tuple[Peak, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((peak(name), decay), []).append(parameter)
    listed = [
        {"params": some, "lr": 0.0, "weight_decay": decay} | {"peak": p.rate, "start": p.start, "rate": p.name}
        for (p, decay), some in groups.items()
    ]
    return torch.optim.AdamW(listed, betas=(0.9, 0.98), eps=1e-6)


class Loop:
    """`step` counts the steps done, of `steps`."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, objective: Objective, steps: int, warmup: float, clip: float = 1.0
    ) -> None:
        self.optimizer, self.objective, self.step = optimizer, objective, 0
        self.steps, self.warmup, self.clip = steps, warmup, clip

    def update(self, embed: Embed, parts: Sequence[Any], ids: Callable[[], list[str]]) -> dict[str, float]:
        """One step on this process's `parts` of a batch (see `full_batch_gradient`): its figures.

        Raises VlmkitError naming the pictures (`ids`) of the batch when the loss is not finite.
        """
        self.step += 1
        for group in self.optimizer.param_groups:
            start = group["start"]
            share = rate(self.step - start, self.steps - start, self.warmup) if self.step > start else 0.0
            group["lr"] = group["peak"] * share
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.zero_grad()
        loss = full_batch_gradient(embed, parts, self.objective, parameters)
        if not math.isfinite(loss):
            what = f"the loss is {loss} at step {self.step}, pictures {', '.join(ids())}"
            raise VlmkitError(what, "try a lower rate, in a new folder")
        norm = nn.utils.clip_grad_norm_(parameters, self.clip, error_if_nonfinite=False).item()
        self.optimizer.step()
        self.objective.clamp()
        rates = {group["rate"]: group["lr"] for group in self.optimizer.param_groups}
        return {"step": self.step, "loss": loss} | rates | {"grad_norm": norm} | self.objective.figures()


class Run:
    """Trains `learner` on the batches of each epoch, `steps` in all; pictures are told by `ids`."""

    def __init__(
        self,
        config: ContrastiveConfig,
        learner: Learner,
        batches: Callable[[int], Iterator[Batch]],
        ids: list[str],
        steps: int,
        log: Log,
        note: Callable[[str], None],
    ) -> None:
        self.config, self.learner, self.batches, self.ids, self.steps = config, learner, batches, ids, steps
        self.log, self.note, self.state = log, note, State()
        self.folder = config.out / "checkpoints"
        objective = Objective(learner.model, config.loss, learner.fresh)
        self.optimizer = optimizer_for(learner.model, learner.peak, config.weight_decay)
        self.loop = Loop(self.optimizer, objective, steps, config.warmup, config.clip)
        self.report = reporter(config.report_to if rank() == 0 else None, config.out / CURVES)
        self.save_steps = config.save_steps or max(1, -(-steps // 10))
        self.seen, self.since = 0, time.perf_counter()

    def go(self, checkpoint: Path | None) -> None:
        """Train to the end, or from `checkpoint` on; `learner` then has the weights to keep."""
        if checkpoint:
            self.state = load_checkpoint(checkpoint, self.learner.model, self.optimizer)
            self.loop.step = self.state.step
            self.note(f"going on from step {self.state.step} of {self.steps}")
        else:
            self._validate(0)
        step = 0
        for epoch in count(1):
            if step == self.steps or self._enough():
                break
            made = [replace(batch, step=step + n) for n, batch in enumerate(self.batches(epoch), 1)]
            made = made[: self.steps - step]
            self._epoch([batch for batch in made if batch.step > self.state.step], made[-1].step if made else step)
            step += len(made)
        if self.config.best and self.state.best_step:
            load_weights(checkpoint_of(self.folder, self.state.best_step), self.learner.model)

    def _enough(self) -> bool:
        return self.config.patience is not None and self.state.waited >= self.config.patience

    def _epoch(self, batches: list[Batch], last: int) -> None:
        """Train on `batches`; the last one of the epoch makes the step `last`."""
        self.learner.train()
        for batch, parts in self.learner.load(batches):
            figures = self.loop.update(self.learner.embed, parts, partial(self._names, batch))
            self.state.step = batch.step
            self.seen += len(batch.pictures)
            if batch.step in (1, self.steps) or batch.step % self.config.log_every == 0:
                self._log({"epoch": batch.epoch} | figures | self._speed())
            told = self.config.save_steps is not None and batch.step % self.config.save_steps == 0
            better = self._validate(batch.epoch) if told or batch.step == last else False
            if better or batch.step % self.save_steps == 0 or batch.step == self.steps:
                save_checkpoint(self.folder, self.state, self.learner.model, self.optimizer, self.config.keep)
            if self._enough():
                return

    def _names(self, batch: Batch) -> list[str]:
        return [self.ids[i] for i in batch.pictures]

    def _speed(self) -> dict[str, float]:
        now = time.perf_counter()
        speed = self.seen / max(now - self.since, 1e-9)
        self.seen, self.since = 0, now
        return {"samples_per_s": round(speed, 1), "memory_gb": round(memory_gb(), 3)}

    def _log(self, figures: dict[str, Any]) -> None:
        self.state.history.append(figures)
        if rank() == 0:
            self.log(figures)
            self.report(figures)

    def _validate(self, epoch: int) -> bool:
        """Log the retrieval figures: whether they are the best, to be kept."""
        found = self.learner.validate(self.state.step)
        self.learner.train()
        self.since, self.seen = time.perf_counter(), 0
        if not found:
            return False
        found = agreed(found)
        recall = sum(value for name, value in found.items() if name != "gap") / (len(found) - 1)
        self._log({"epoch": epoch, "step": self.state.step} | found | {"mean_recall": round(recall, 6)})
        better = self.state.judge(recall)
        below = self.state.first is not None and recall < self.state.first
        if below and not self.state.warned:
            what = f"retrieval fell below that of before step 1 (mean recall {recall:.3f} < {self.state.first:.3f})"
            self.note(f"warning: {what}: a lower --lr keeps what the model knows")
        self.state.warned = below
        return better and self.config.best


@dataclass(frozen=True, slots=True)
class Plan:
    """The pictures, and in which batches they come."""

    config: ContrastiveConfig
    training: Pictures
    validation: Pictures | None

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Those of an epoch, from 1."""
        c = self.config
        counts = [len(sample.captions) for sample in self.training.rows]
        times, least = self.training.times(epoch - 1), max(2, world())
        return batches(counts, c.batch_size, c.augmentations, c.captions, c.seed, epoch, times, least)

    def per_epoch(self) -> int:
        """Batches in the first epoch; where weights are fractions, others may have one more or less."""
        return sum(1 for _ in self.batches(1))


def plan(config: ContrastiveConfig, failures: Failures, quiet: bool = False) -> Plan:
    """Read and check the data. Raises VlmkitError."""
    training = read_pictures(config.data, failures, config.images, config.limit, quiet=quiet)
    validation = None
    if isinstance(config.val, float):
        training, validation = training.split(config.val)
    elif config.val:
        validation = read_pictures([config.val], failures, config.images, config.limit, quiet=quiet)
    made = Plan(config, training, validation)
    if not made.per_epoch():
        raise VlmkitError("one picture alone has nothing to be told from", "give more data, or a larger --batch-size")
    return made


def steps_of(config: ContrastiveConfig, made: Plan) -> int:
    return config.steps or max(1, round(config.epochs * made.per_epoch()))


@contextmanager
def opened(config: ContrastiveConfig, made: Plan, steps: int) -> Iterator[Learner]:
    """What is trained, ready to train. Raises VlmkitError."""
    training, validation = made.training.rows, made.validation.rows if made.validation else []
    torch.manual_seed(config.seed)
    with ExitStack() as stack:
        if config.start is None:
            from vlmkit.train.contrastive.two_towers import towers

            vision, text = stack.enter_context(towers(config.vision or "", config.text or ""))
            if isinstance(config, LitConfig):
                from vlmkit.train.contrastive.two_towers import Lit

                last = min(steps, config.text_epochs * made.per_epoch()) if config.text_layers else 0
                yield Lit(config, vision, text, training, validation, steps - last)
                return
        from vlmkit.train.contrastive.model import Dual
        from vlmkit.train.tiny_models import joined_towers, new_model

        if config.start is None:
            yield Dual(
                config, stack.enter_context(joined_towers(vision, text, config.dim)), False, training, validation
            )
            return
        fresh = is_from_scratch(config.start)
        start = stack.enter_context(new_model(config.start, training)) if fresh else config.start
        yield Dual(config, start, fresh, training, validation)


def train(
    config: ContrastiveConfig,
    log: Log,
    failures: Failures | None = None,
    note: Callable[[str], None] = lambda _: None,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Run the stage; what it makes stands in `config.out` once all is done.

    Raises VlmkitError; then there are checkpoints in the folder, or there is no folder.
    """
    with processes(config.device), deterministic(config.device):
        start = begin(config, resume)
        if start.finished:
            note(f"{config.out} is finished already")
            return config.out
        check(config)
        made = plan(config, failures or Failures(), quiet)
        steps = steps_of(config, made)
        if failures is not None and rank() == 0:
            show(made.training.table)
            if made.validation and not isinstance(config.val, str):
                held_out, kept = len(made.validation.rows), len(made.training.rows)
                warn(f"{held_out} of these pictures held out for validation, {kept} to train on")
        wait()
        with _begun(config.out), opened(config, made, steps) as learner:
            if world() > 1:
                torch.manual_seed(config.seed + rank())
            if rank() == 0:
                open_run(config)
            wait()
            run = Run(config, learner, made.batches, [sample.id for sample in made.training.rows], steps, log, note)
            run.go(start.checkpoint)
            if rank() == 0:
                with finishing(config) as folder:
                    learner.save(folder, config.out)
                    plot_losses(run.state.history, folder / "loss.png")
                    (folder / "README.md").write_text(contrastive_card(config, made.training.table, run.state))
            wait()
    return config.out


@contextmanager
def _begun(out: Path) -> Iterator[None]:
    """A run that is broken off before its first checkpoint leaves nothing."""
    there = out.exists()
    try:
        yield
    except BaseException:
        if rank() == 0 and last_checkpoint(out / "checkpoints") is None:
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
            if not there and out.exists() and not any(out.iterdir()):
                out.rmdir()
        raise
