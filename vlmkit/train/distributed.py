"""The processes of one run, as torchrun starts them, and what makes a run repeatable."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import AlreadyReported

T = TypeVar("T")


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


def leave_processes() -> None:
    """Disconnect: left to the exit of Python, the threads of the connection may abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Return once all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def gather_sizes(size: int) -> list[int]:
    """The `size` of each process."""
    found: list[int] = [size] * world()
    if dist.is_initialized():
        dist.all_gather_object(found, size)
    return found


def all_gather(x: Tensor, dim: int, sizes: list[int]) -> Tensor:
    """Join the `x` of all processes along `dim`, where process r has `sizes[r]` rows. Without gradients."""
    if len(sizes) == 1:
        return x
    shape = list(x.shape)
    shape[dim] = sum(sizes)
    joined = x.new_zeros(shape)
    joined.narrow(dim, sum(sizes[: rank()]), sizes[rank()]).copy_(x)
    dist.all_reduce(joined)
    return joined


def all_reduce(tensors: list[Tensor]) -> None:
    """Sum each of `tensors` over all processes, in place."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


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
