"""Checkpoints that are complete or absent, whatever moment a run is killed at."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError

from vlmkit.errors import VlmkitError, first_line

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
