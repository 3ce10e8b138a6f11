"""A run from its first to its last step: log, validation, checkpoints, early stop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from vlmkit.train.checkpoints import checkpoint_of
from vlmkit.train.contrastive.batches import Batch
from vlmkit.train.contrastive.config import ContrastiveConfig
from vlmkit.train.contrastive.learner import Learner
from vlmkit.train.contrastive.loop import Loop, optimizer_for
from vlmkit.train.contrastive.losses import Objective
from vlmkit.train.contrastive.processes import agreed, rank
from vlmkit.train.contrastive.state import State, load_checkpoint, load_weights, save_checkpoint
from vlmkit.train.folder import CURVES
from vlmkit.train.log import Log, memory_gb
from vlmkit.train.report import reporter


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
