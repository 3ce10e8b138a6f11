"""The output folder of a run: whose it is, whether it is done, and where a killed run goes on."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.train.checkpoints import last_checkpoint
from vlmkit.train.settings import as_toml

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SETTINGS = "train.toml"
FINISHED = Path("finished")
UNFINISHED = ".finish-"
CURVES = "runs"  # what --report-to tensorboard writes


def begin(config: Any, resume: bool) -> Path | None:
    """The checkpoint to go on from, None to begin, or FINISHED.

    Raises VlmkitError where the folder holds something else, another run, or one that nobody asked to resume.
    """
    out, folder = config.out, config.out / "checkpoints"
    if out.exists() and not out.is_dir():
        raise VlmkitError(f"{out} is no folder", "name a new folder with -o")
    if not out.absolute().parent.is_dir():
        raise VlmkitError(f"{out.absolute().parent} does not exist", "make that folder first")
    checkpoint = last_checkpoint(folder)
    done = any((out / name).exists() for name in WEIGHTS)
    other = out.exists() and any(path.name not in ("checkpoints", CURVES, SETTINGS) for path in out.iterdir())
    if (done or checkpoint) and not resume:
        held = "a finished run" if done else "an unfinished run"
        raise VlmkitError(f"{out} holds {held}", "use --resume for that one, or name a new folder with -o")
    if other and not done and not checkpoint:  # with one, it was killed while it wrote its model
        raise VlmkitError(f"{out} is not empty", "name a new folder with -o")
    told = (out if done else folder) / SETTINGS
    if (done or checkpoint) and told.is_file() and told.read_text() != as_toml(config):
        raise VlmkitError(f"{out} holds a run with other settings", f"compare {told}, or name a new folder with -o")
    return FINISHED if done else checkpoint


def open_run(config: Any) -> Path:
    """The folder for checkpoints, with the settings in it."""
    folder = config.out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(as_toml(config))
    return folder


@contextmanager
def finishing(out: Path) -> Iterator[Path]:
    """A folder for the finished model, which moves into `out` when the block ends: weights, which say so, last."""
    for left in out.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=out) as name:
        made = Path(name)
        yield made
        shutil.copyfile(out / "checkpoints" / SETTINGS, made / SETTINGS)
        mode = (made / SETTINGS).stat().st_mode
        for path in sorted(made.iterdir(), key=lambda path: (path.name in WEIGHTS, path.name)):
            path.chmod(mode)  # safetensors makes files that only their owner reads
            os.replace(path, out / path.name)
