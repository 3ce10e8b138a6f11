"""The processes of one run, as torchrun starts them, and what makes a run repeatable."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import AlreadyReported, warn

T = TypeVar("T")
BUCKET = 2**24  # numbers that are joined to be summed in one go


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: str) -> None:
    """Connect the processes of torchrun, and wait until all are there."""
    if world() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")
        wait()
    elif device == "cuda" and (count := torch.cuda.device_count()) > 1:
        warn(f"one of {count} GPUs is used: torchrun --nproc-per-node {count} -m vlmkit train ... uses all")


def leave_processes() -> None:
    """Disconnect: left to the exit of Python, the threads of the connection may abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Return once all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def blind_hosts(folder: Path) -> list[str]:
    """The hosts that do not see what the first process writes into `folder`: their disks are others."""
    if not dist.is_initialized():
        return []
    with contextlib.ExitStack() as stack:
        name = None
        if rank() == 0 and folder.is_dir():
            mark = stack.enter_context(tempfile.NamedTemporaryFile(prefix=".vlmkit-shared-", dir=folder))
            name = Path(mark.name).name
        name = broadcast_object(name)
        sees = name is None or (folder / name).exists()
        hosts: list[str | None] = [None] * world()
        dist.all_gather_object(hosts, None if sees else socket.gethostname())
    return sorted({host for host in hosts if host is not None})


def all_gather(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Join the `x` of all processes along `dim`, where process r has `sizes[r]` rows. Without gradients."""
    if len(sizes) == 1:
        return x
    rows, most = x.movedim(dim, 0), max(sizes)
    own = rows.new_zeros(most, *rows.shape[1:])  # of one size everywhere, as gloo wants
    own[: len(rows)] = rows
    joined = own.new_empty(len(sizes) * most, *own.shape[1:])
    parts = list(joined.split(most))
    dist.all_gather(parts, own)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).movedim(0, dim)


def all_reduce(tensors: list[Tensor]) -> None:
    """Sum each of `tensors` over all processes, in place, many at once."""
    if world() == 1:
        return
    bucket: list[Tensor] = []
    for number, tensor in enumerate(tensors, 1):
        bucket.append(tensor)
        if number < len(tensors) and sum(each.numel() for each in bucket) < BUCKET:
            continue
        flat = torch.cat([each.flatten() for each in bucket])
        dist.all_reduce(flat)
        for each, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            each.copy_(part.view_as(each))
        bucket = []


def broadcast(tensors: list[Tensor]) -> None:
    """Overwrite `tensors` by those of the first process."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def broadcast_object(value: T) -> T:
    """The `value` of the first process."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def rank_zero_only() -> Iterator[None]:
    """Let the first process alone write to standard error, and report the error that all of them meet."""
    if rank() == 0:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    except VlmkitError:
        raise AlreadyReported from None


@contextlib.contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Add up the gradients of rows that are picked twice (`x[rows]`) in one order, not as threads finish.

    On a CPU alone: CUDA sorts such gradients first, and in this mode refuses other operations.
    """
    memory: Any = torch.utils.deterministic  # its types lack its property
    before, filled = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    if device == "cpu":
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled
