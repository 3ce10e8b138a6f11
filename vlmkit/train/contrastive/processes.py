"""What the processes of torchrun tell each other; one process alone tells itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad


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


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def shares(ours: int) -> list[int]:
    """How many each process has."""
    found: list[int | None] = [ours] * world()
    if dist.is_initialized():
        dist.all_gather_object(found, ours)
    return [size or 0 for size in found]


def gathered(x: Tensor, dim: int, sizes: list[int]) -> Tensor:
    """`x` of all processes, of which each has `sizes[rank]` along `dim`, one after the other."""
    if len(sizes) == 1:
        return x
    x = x.movedim(dim, 0)
    padded = pad(x, (0, 0) * (x.ndim - 1) + (0, max(sizes) - len(x)))
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded.contiguous())
    return torch.cat([some[:size] for some, size in zip(found, sizes, strict=True)]).movedim(0, dim)


def add_up(gradients: list[Tensor]) -> None:
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
