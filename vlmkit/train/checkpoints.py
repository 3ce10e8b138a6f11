"""Checkpoints that are complete or absent, whatever moment a run is killed at."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from vlmkit.errors import VlmkitError

CHECKPOINT = "checkpoint-"
PARTIAL = ".partial"


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
        yield partial / name
        wait()
        if writes:
            (partial / name).replace(folder / name)
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and "write" not in str(error):
            raise
        last = last_checkpoint(folder)
        kept = f"{last.name} is whole" if last else "there is none before it"
        what = f"the checkpoint of step {step} cannot be written ({error}), {kept}"
        raise VlmkitError(what, "free some space, then use --resume") from None
    finally:
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
    wait()


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
