"""`vlmkit train contrastive`: from a configuration to a folder that `vlmkit embed` opens."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from vlmkit.errors import VlmkitError
from vlmkit.streams import Failures, tell
from vlmkit.train.checkpoints import last_checkpoint, wait
from vlmkit.train.contrastive.batches import Batch, batches
from vlmkit.train.contrastive.card import model_card
from vlmkit.train.contrastive.config import ContrastiveConfig, LitConfig
from vlmkit.train.contrastive.data import Pictures, read_pictures
from vlmkit.train.contrastive.learner import Learner
from vlmkit.train.contrastive.processes import processes, rank, world
from vlmkit.train.contrastive.run import Run
from vlmkit.train.deterministic import deterministic
from vlmkit.train.folder import begin, finishing, open_run
from vlmkit.train.log import Log
from vlmkit.train.plot import plot_losses
from vlmkit.train.table import show


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
        return batches(counts, c.batch_size, c.views, c.captions, c.seed, epoch, times, least)

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
            from vlmkit.train.registered import towers

            vision, text = stack.enter_context(towers(config.vision or "", config.text or ""))
            if isinstance(config, LitConfig):
                from vlmkit.train.contrastive.lit import Lit

                last = min(steps, config.text_epochs * made.per_epoch()) if config.text_layers else 0
                yield Lit(config, vision, text, training, validation, steps - last)
                return
        from vlmkit.train.contrastive.dual import Dual
        from vlmkit.train.contrastive.fresh import is_new, joined_towers, new_model

        if config.start is None:
            yield Dual(
                config, stack.enter_context(joined_towers(vision, text, config.dim)), False, training, validation
            )
            return
        fresh = is_new(config.start)
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
        if config.batch_size < max(2, world()):
            raise VlmkitError(f"--batch-size {config.batch_size} is too small", "give each process a picture, and two")
        made = plan(config, failures or Failures(), quiet)
        steps = steps_of(config, made)
        if failures is not None and rank() == 0:
            show(made.training.table)
            if made.validation and not isinstance(config.val, str):
                held_out, kept = len(made.validation.rows), len(made.training.rows)
                tell(f"{held_out} of these pictures held out for validation, {kept} to train on")
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
                    (folder / "README.md").write_text(model_card(config, learner, made.training.table, run.state))
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
