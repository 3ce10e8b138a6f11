"""What the processes of torchrun tell each other; one process alone tells itself.

The same bytes from the same run, on a CPU of several cores.

Several processes of one run, as torchrun starts them: the first one speaks for all.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import AlreadyReported


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the other processes, if torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    yield  # after an error the others would be waited for in vain
    dist.destroy_process_group()


def shares(ours: int) -> list[int]:
    """How many each process has."""
    found: list[int | None] = [ours] * world()
    if dist.is_initialized():
        dist.all_gather_object(found, ours)
    return [size or 0 for size in found]


def all_gather(x: Tensor, dim: int, sizes: list[int]) -> Tensor:
    """`x` of all processes, of which each has `sizes[rank]` along `dim`, one after the other."""
    if len(sizes) == 1:
        return x
    x = x.movedim(dim, 0)
    padded = pad(x, (0, 0) * (x.ndim - 1) + (0, max(sizes) - len(x)))
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded.contiguous())
    return torch.cat([some[:size] for some, size in zip(found, sizes, strict=True)]).movedim(0, dim)


def all_reduce(gradients: list[Tensor]) -> None:
    """Sum each of `gradients` over all processes, in place."""
    if world() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def spread(tensors: list[Tensor]) -> None:
    """Overwrite `tensors` by those of the first process."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def agreed(found: dict[str, float]) -> dict[str, float]:
    """What the first process found."""
    told = [found]
    if world() > 1:
        dist.broadcast_object_list(told)
    return told[0]


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Gradients of rows that are picked twice (`x[rows]`) add up in one order, not in that in which threads come.

    On a CPU alone: on CUDA such gradients are sorted first, and in this mode other operations are refused.
    """
    memory: Any = torch.utils.deterministic  # its types do not know its property
    before, filled = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    if device == "cpu":
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled


def rank() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def rank_zero_only() -> Iterator[None]:
    """For what all processes do alike: what the others have to say, their errors too, the first one says."""
    if rank() == 0:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    except VlmkitError:
        raise AlreadyReported from None
