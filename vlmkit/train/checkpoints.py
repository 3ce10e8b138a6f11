"""The output folder of a run: checkpoints that are complete or absent, the settings, and the finished model."""

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vlmkit.errors import VlmkitError, first_line
from vlmkit.io.files import FULL_DISK, explain_no_room
from vlmkit.train.config import SETTINGS as FIELDS
from vlmkit.train.config import TrainConfig, name_of
from vlmkit.train.distributed import broadcast, rank, wait
from vlmkit.train.sharding import SHARDS, free_gathered, load_shards, save_shards, units

CHECKPOINT = "checkpoint-"
PARTIAL = ".partial"  # in which a checkpoint is written
WEIGHTS = "model.safetensors"
MARKERS = WEIGHTS, "model.safetensors.index.json"  # a folder with one of them is finished
SETTINGS = "train.toml"
DATA = "data.json"  # fingerprints of the rows, and of a template
FINISHING = ".finish-"  # in which the finished model is written
MAX_NAMED = 4  # settings that differ


def checkpoint_folder(config: Any) -> Path:
    """Where the run of `config` keeps its checkpoints."""
    return config.out / "checkpoints"


def checkpoint_of(folder: Path, step: int | None) -> Path:
    """The checkpoint of `step` in `folder`."""
    return folder / f"{CHECKPOINT}{step}"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(folder.glob(f"{CHECKPOINT}*"), key=lambda path: int(path.name.removeprefix(CHECKPOINT)))


def commit_checkpoint(folder: Path, step: int) -> None:
    """Move the checkpoint of `step`, now complete, from PARTIAL into `folder`."""
    checkpoint_of(folder / PARTIAL, step).replace(checkpoint_of(folder, step))


def drop_old_checkpoints(folder: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the last `keep` and that of the step `best`."""
    for old in checkpoints(folder)[:-keep]:
        if old != checkpoint_of(folder, best):
            shutil.rmtree(old)


@contextmanager
def explain_full_disk(name: Callable[[], str | None], folder: Path) -> Iterator[None]:
    """Raise VlmkitError where what `name` says is being written does not fit on the disk. With None, it is not that."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        what = name()
        if what is None or (isinstance(error, OSError) and error.errno not in FULL_DISK):
            raise
        of_torch = type(error) is RuntimeError  # torch.save raises these
        if of_torch and not any(word in str(error) for word in ("write", "inline_container")):
            raise
        reason = "the disk is full" if of_torch else first_line(error)
        found = checkpoints(folder)
        kept = f"{found[-1].name} is complete" if found else "there is no checkpoint before it"
        cause = f"{what} cannot be written ({reason}), {kept}"
        raise VlmkitError(cause, "free some space, then use --resume") from None


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of `model` that are trained, each once."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes in `model`: parameters that are not locked, and buffers that are saved."""
    state = model.state_dict()
    return trained_parameters(model) | {name: value for name, value in model.named_buffers() if name in state}


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write the trained state; the first process does."""
    broadcast(list(model.buffers()))
    if rank() == 0:
        state = {name: value.detach().cpu().clone() for name, value in trained_state(model).items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / WEIGHTS)


def save_trained_shards(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Write the trained state of a sharded `model`, and that of its optimizer, each process its own part."""
    free_gathered(model)
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({}, folder / WEIGHTS)  # `Trainer` takes no folder for a checkpoint without it
    wait()
    save_shards(trained_state(model), optimizer, folder)


def load_trained(model: nn.Module, checkpoint: Path, optimizer: Optimizer | None = None) -> None:
    """Load the trained state in `checkpoint`, all of it; of shards that of `optimizer`, too.

    Raises VlmkitError where the names differ.
    """
    if (checkpoint / SHARDS).is_dir():
        free_gathered(model)
        return load_shards(trained_state(model), checkpoint, optimizer, alone=not units(model))
    weights, places = load_file(checkpoint / WEIGHTS), trained_state(model)
    if odd := weights.keys() ^ places.keys():
        raise VlmkitError(f"{checkpoint} is of another run ({min(odd)})", "resume with the options it was begun with")
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(weights[name])


class LoadedStrictly(nn.Module):
    """A module whose weights `Trainer` leaves alone as it resumes: it would accept names that do not match."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Nothing: `load_trained` follows."""
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])


class Start(NamedTuple):
    """Whether a run is finished, and if not, the checkpoint it continues from, if there is one."""

    finished: bool
    checkpoint: Path | None


def begin(config: Any, resume: bool) -> Start:
    """Look at the output folder of `config`.

    Raises VlmkitError where it holds something else, another run, or a run that nobody asked to resume.
    """
    out, folder = config.out, checkpoint_folder(config)
    if out.exists() and not out.is_dir():
        raise VlmkitError(f"{out} is not a folder", "name a new folder with -o")
    if not out.absolute().parent.is_dir():
        raise VlmkitError(f"{out.absolute().parent} does not exist", "make that folder first")
    finished = any((out / name).exists() for name in MARKERS)
    found = checkpoints(folder)
    if not finished and not (folder / SETTINGS).exists() and out.exists() and any(out.iterdir()):
        raise VlmkitError(f"{out} is not empty", "name a new folder with -o")
    if not finished and not found:
        return Start(False, None)
    if not resume:
        content = "a finished run" if finished else "an unfinished run"
        raise VlmkitError(f"{out} holds {content}", "use --resume for that one, or name a new folder with -o")
    settings = (out if finished else folder) / SETTINGS
    before = settings.read_text() if settings.is_file() else ""
    if before != (now := as_toml(config)):
        what = f"{out} holds a run with other settings ({', '.join(_differing(before, now)[:MAX_NAMED])})"
        raise VlmkitError(what, f"compare {settings}, or name a new folder with -o")
    return Start(finished, found[-1] if found else None)


def as_toml(config: TrainConfig) -> str:
    """The stage and all its settings, as `--config` reads them."""
    import tomli_w

    values = {name_of(name): getattr(config, name) for name in FIELDS[type(config)]}
    given = {
        name: str(value) if isinstance(value, Path) else value for name, value in values.items() if value is not None
    }
    return tomli_w.dumps({"stage": config.stage.value} | given)


def _differing(before: str, now: str) -> list[str]:
    """The names of settings whose values differ; the file `before` may have been edited by hand."""
    old, new = {}, tomllib.loads(now)
    with suppress(tomllib.TOMLDecodeError):
        old = tomllib.loads(before)
    return [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def open_run(config: Any, data: list[tuple[str, str]], resumed: bool) -> Path:
    """Make the folder for checkpoints, with the settings in it, and remove what a killed run left half written.

    `data` are the names of all DATA with fingerprints of their rows. Raises VlmkitError where a resumed run began with
    other rows.
    """
    folder = checkpoint_folder(config)
    before = folder / DATA
    if resumed and before.is_file():
        begun = {(name, fingerprint) for name, fingerprint in json.loads(before.read_text())}
        if changed := [name for name, fingerprint in data if (name, fingerprint) not in begun]:
            what = f"{', '.join(changed)} changed since the run in {config.out} began"
            raise VlmkitError(what, "restore it, or name a new folder with -o")
    with explain_no_room(config.out, "the settings of the run", "free some space"):
        folder.mkdir(parents=True, exist_ok=True)
        for torn in (folder / PARTIAL, *config.out.glob(f"{FINISHING}*")):
            shutil.rmtree(torn, ignore_errors=True)
        (folder / SETTINGS).write_text(as_toml(config))
        before.write_text(json.dumps(data))
    return folder


@contextmanager
def removed_unless_begun(config: Any) -> Iterator[None]:
    """Where the block fails before the first checkpoint, remove the output folder, unless it holds something else."""
    there, folder = config.out.exists(), checkpoint_folder(config)
    try:
        yield
    except BaseException:  # whatever ended it, nothing half-made stays
        if rank() == 0 and not checkpoints(folder):
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
            with suppress(OSError):  # other files are there: features of the vision tower
                for name in (SETTINGS, DATA):
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()
                if not there:
                    config.out.rmdir()
        raise


@contextmanager
def finishing(config: Any) -> Iterator[Path]:
    """A folder for the finished model, which moves into `config.out` when the block ends; the weights move last.

    Raises VlmkitError where the disk is full.
    """
    folder = checkpoint_folder(config)
    with (
        explain_full_disk(lambda: "the model", folder),
        tempfile.TemporaryDirectory(prefix=FINISHING, dir=config.out) as name,
    ):
        made = Path(name)
        yield made
        shutil.copyfile(folder / SETTINGS, made / SETTINGS)
        mode = (made / SETTINGS).stat().st_mode
        for path in sorted(made.iterdir(), key=lambda path: (path.name in MARKERS, path.name)):
            path.chmod(mode)  # safetensors makes files that only their owner reads
            os.replace(path, config.out / path.name)
    for cached in folder.glob("features-*"):
        cached.unlink()
