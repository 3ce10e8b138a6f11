"""Checkpoints that are complete or absent, whatever moment a run is killed at.

Where a run stands, and its checkpoints: all that a killed run needs to go on as if nothing had been.

The output folder of a run: whose it is, whether it is done, and where a killed run goes on.
"""

import errno
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmkit.errors import VlmkitError, first_line
from vlmkit.train.config import as_toml
from vlmkit.train.contrastive.gradcache import random_state, set_random_state
from vlmkit.train.distributed import rank, spread

CHECKPOINT = "checkpoint-"
PARTIAL = ".partial"
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


@contextmanager
def staged(folder: Path, step: int, writes: bool = True) -> Iterator[Path]:
    """Where the checkpoint of `step` is written; it gets its name in `folder` when the block ends well.

    All processes of a run enter, one of them `writes`. Raises VlmkitError where the disk is full; the last one stays.
    """
    name = f"{CHECKPOINT}{step}"
    partial = folder / PARTIAL
    if writes:
        shutil.rmtree(partial, ignore_errors=True)
    wait()
    try:
        with whole_or_told(f"the checkpoint of step {step}", folder):
            yield partial / name
        wait()
        if writes:
            (partial / name).replace(folder / name)
    finally:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
    wait()


@contextmanager
def whole_or_told(what: str, folder: Path) -> Iterator[None]:
    """Raises VlmkitError where `what` does not fit on the disk, saying which checkpoint in `folder` there is."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in FULL:
            raise
        if type(error) is RuntimeError and "write" not in str(error):  # of torch.save
            raise
        last = last_checkpoint(folder)
        kept = f"{last.name} is whole" if last else "there is no checkpoint before it"
        told = f"{what} cannot be written ({first_line(error)}), {kept}"
        raise VlmkitError(told, "free some space, then use --resume") from None


def drop_old(folder: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the last `keep` and that of the step `best`."""
    for old in checkpoints(folder)[:-keep]:
        if old != checkpoint_of(folder, best):
            shutil.rmtree(old)


def checkpoint_of(folder: Path, step: int | None) -> Path:
    return folder / f"{CHECKPOINT}{step}"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(folder.glob(f"{CHECKPOINT}*"), key=lambda path: int(path.name.removeprefix(CHECKPOINT)))


def last_checkpoint(folder: Path) -> Path | None:
    found = checkpoints(folder)
    return found[-1] if found else None


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


WEIGHTS, OPTIMIZER, STATE = "trained.safetensors", "optimizer.pt", "state.json"


@dataclass(slots=True)
class State:
    """`recall` is the mean of the six recalls of a validation."""

    step: int = 0
    first: float | None = None  # the recall before step 1
    best: float | None = None  # the highest recall since
    best_step: int | None = None
    waited: int = 0  # validations since the best
    warned: bool = False  # whether the last one was below the first
    history: list[dict[str, Any]] = field(default_factory=list)  # what was logged

    def judge(self, recall: float) -> bool:
        """Take in the recall of a validation: whether it is the best one."""
        if self.step == 0:
            self.first = recall
            return False
        better = self.best is None or recall > self.best
        self.best, self.best_step, self.waited = (
            (recall, self.step, 0) if better else (self.best, self.best_step, self.waited + 1)
        )
        return better


def save_checkpoint(folder: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> None:
    """Write the checkpoint of `state.step` and remove old ones but the last `keep` and the best."""
    if checkpoint_of(folder, state.step).exists():
        return
    weights = changing(model)
    spread([value for name, value in weights.items() if name not in dict(model.named_parameters())])
    with staged(folder, state.step, rank() == 0) as made:
        made.mkdir(parents=True, exist_ok=True)
        torch.save(random_state(), made / f"random-{rank()}.pt")
        if rank() == 0:
            save_file({name: value.detach().cpu().clone() for name, value in weights.items()}, made / WEIGHTS)
            torch.save(optimizer.state_dict(), made / OPTIMIZER)
            (made / STATE).write_text(json.dumps(asdict(state)))
    if rank() == 0:
        drop_old(folder, keep, state.best_step)


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Go on from `checkpoint`. Raises VlmkitError where it is of another run."""
    load_weights(checkpoint, model)
    optimizer.load_state_dict(torch.load(checkpoint / OPTIMIZER, weights_only=True))
    random = checkpoint / f"random-{rank()}.pt"
    if not random.is_file():
        raise VlmkitError(f"{checkpoint} was made by fewer processes", "resume with as many as it was begun with")
    set_random_state(torch.load(random, weights_only=True))
    return State(**json.loads((checkpoint / STATE).read_text()))


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Load what `save_checkpoint` wrote of `model`, all of it. Raises VlmkitError where the names differ."""
    weights, places = load_file(checkpoint / WEIGHTS), changing(model)
    if odd := weights.keys() ^ places.keys():
        raise VlmkitError(f"{checkpoint} is of another run ({min(odd)})", "resume with the options it was begun with")
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(weights[name])


def changing(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that are not locked, and buffers."""
    locked = {name for name, value in model.named_parameters() if not value.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in locked}


MARKERS = "model.safetensors", "model.safetensors.index.json"  # a folder with one of them is finished
SETTINGS = "train.toml"
CURVES = "runs"  # what --report-to tensorboard writes
NAMED = 4  # settings that differ
FINISHING = ".finish-"  # folders in which the end of a run is put together


class Start(NamedTuple):
    """Whether the run is finished already, and else the checkpoint it goes on from, if there is one."""

    finished: bool
    checkpoint: Path | None


def begin(config: Any, resume: bool) -> Start:
    """Where the run in `config.out` stands.

    Raises VlmkitError where the folder holds something else, another run, or one that nobody asked to resume.
    """
    out, folder = config.out, checkpoint_folder(config)
    if out.exists() and not out.is_dir():
        raise VlmkitError(f"{out} is no folder", "name a new folder with -o")
    if not out.absolute().parent.is_dir():
        raise VlmkitError(f"{out.absolute().parent} does not exist", "make that folder first")
    finished = any((out / name).exists() for name in MARKERS)
    checkpoint = last_checkpoint(folder)
    if not finished and not (folder / SETTINGS).exists() and out.exists() and any(out.iterdir()):
        raise VlmkitError(f"{out} is not empty", "name a new folder with -o")
    if not finished and not checkpoint:
        return Start(False, None)
    held = "a finished run" if finished else "an unfinished run"
    if not resume:
        raise VlmkitError(f"{out} holds {held}", "use --resume for that one, or name a new folder with -o")
    told = (out if finished else folder) / SETTINGS
    before = told.read_text() if told.is_file() else ""
    if before != (now := as_toml(config)):
        what = f"{out} holds a run with other settings ({', '.join(_differing(before, now)[:NAMED])})"
        raise VlmkitError(what, f"compare {told}, or name a new folder with -o")
    return Start(finished, checkpoint)


def _differing(one: str, other: str) -> list[str]:
    """The names of settings whose values differ; `one` may have been edited by hand."""
    told, asked = {}, tomllib.loads(other)
    with suppress(tomllib.TOMLDecodeError):
        told = tomllib.loads(one)
    return [name for name in dict.fromkeys([*told, *asked]) if told.get(name) != asked.get(name)]


def open_run(config: Any) -> Path:
    """The folder for checkpoints, with the settings in it."""
    folder = checkpoint_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in config.out.glob(f"{FINISHING}*"):
        shutil.rmtree(torn, ignore_errors=True)
    (folder / SETTINGS).write_text(as_toml(config))
    return folder


def checkpoint_folder(config: Any) -> Path:
    return config.out / "checkpoints"


@contextmanager
def finishing(config: Any) -> Iterator[Path]:
    """A folder for the finished model, which moves into `config.out` when the block ends: weights, which say so, last.

    Raises VlmkitError where there is no room for the model.
    """
    checkpoints = checkpoint_folder(config)
    with (
        whole_or_told("the model", checkpoints),
        tempfile.TemporaryDirectory(prefix=FINISHING, dir=config.out) as name,
    ):
        made = Path(name)
        yield made
        shutil.copyfile(checkpoints / SETTINGS, made / SETTINGS)
        mode = (made / SETTINGS).stat().st_mode
        for path in sorted(made.iterdir(), key=lambda path: (path.name in MARKERS, path.name)):
            path.chmod(mode)  # safetensors makes files that only their owner reads
            os.replace(path, config.out / path.name)
    for cached in checkpoints.glob("features-*"):
        cached.unlink()
