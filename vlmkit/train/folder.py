"""The output folder of a run: whose it is, whether it is done, and where a killed run goes on."""

import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.train.checkpoints import last_checkpoint, whole_or_told
from vlmkit.train.settings import as_toml

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
