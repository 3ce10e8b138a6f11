"""The output folder of a run: whose it is, whether it is done, and where a killed run goes on."""

import shutil
from pathlib import Path
from typing import NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.train.settings import as_toml
from vlmkit.train.vlm.config import VlmConfig
from vlmkit.train.vlm.steady import last_checkpoint

MARKERS = "model.safetensors", "model.safetensors.index.json"  # a folder with one of them is finished
SETTINGS = "train.toml"
FINISHING = ".finish-"  # folders in which the end of a run is put together


class Start(NamedTuple):
    """Whether the run is finished already, and else the checkpoint it goes on from, if there is one."""

    finished: bool
    checkpoint: Path | None


def begin(config: VlmConfig, resume: bool) -> Start:
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
    if not told.is_file() or told.read_text() != as_toml(config):
        raise VlmkitError(f"{out} holds a run with other settings", f"compare {told}, or name a new folder with -o")
    return Start(finished, checkpoint)


def open_run(config: VlmConfig) -> Path:
    """The folder for checkpoints, with the settings in it."""
    folder = checkpoint_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in config.out.glob(f"{FINISHING}*"):
        shutil.rmtree(torn, ignore_errors=True)
    (folder / SETTINGS).write_text(as_toml(config))
    return folder


def checkpoint_folder(config: VlmConfig) -> Path:
    return config.out / "checkpoints"
