"""Training with weights, gradients and optimizer in shards, one a process (FSDP2), and checkpoints in shards.

Each block is a unit of its own: gathered for its turn in the lower precision, freed after it. Gradients are summed in
float32, and weights are updated in float32, as the optimizer holds them. Where every process keeps a whole copy, the
same makes it compute in bfloat16 on weights of bfloat16, of which float32 masters are updated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.optim import Optimizer
from transformers import TrainingArguments

from vlmkit.errors import VlmkitError
from vlmkit.train.blocks import blocks
from vlmkit.train.distributed import world

SHARDS = "shards"  # the folder within a checkpoint
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW knows of a weight, beside its steps


def shard(model: nn.Module, device: str, dtype: torch.dtype, spread: bool = True, offload: bool = False) -> None:
    """Prepare `model` in place to compute in `dtype`, on weights that are updated in float32.

    It is `spread` over all processes, or copied in each. With `offload` shards stay in main memory.
    """
    if not dist.is_initialized():  # one process that torchrun did not start
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    how: dict[str, Any] = {
        "mesh": _mesh(device, spread),
        "mp_policy": MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for block in blocks(model):
        fully_shard(block, **how)
    sharded: Any = fully_shard(model, **how)
    sharded.reduces = True
    sharded.no_sync = partial(_without_reduction, sharded)  # as `Trainer` calls it for all but the last micro-batch
    sharded._is_accelerate_prepared = True  # accelerate shares a model out by itself else, and has no FSDP on CPUs


def _mesh(device: str, spread: bool) -> DeviceMesh:
    if spread:
        return init_device_mesh(device, (world(),))
    return init_device_mesh(device, (world(), 1), mesh_dim_names=("copies", "shards"))


class ShardedArguments(TrainingArguments):
    """Arguments with which `Trainer` leaves the shards of the model where they are."""

    @property
    def place_model_on_device(self) -> bool:
        return False


def units(model: nn.Module) -> list[FSDPModule]:
    """The units that `model` was sharded into; none if it was not."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def free_gathered(model: nn.Module) -> None:
    """Have the parameters of `model` be its shards again, where a forward pass left them gathered."""
    for unit in units(model):
        unit.reshard()


@contextmanager
def _without_reduction(model: Any) -> Iterator[None]:
    """Leave it to a later backward pass to sum the gradients over the processes; within another one, after that one."""
    before, model.reduces = model.reduces, False
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.reduces = before
        model.set_requires_gradient_sync(before)


class ShardedAdamW(torch.optim.AdamW):
    """AdamW whose moments are saved with the shards of the weights, and not by `Trainer` in the first process."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"state": {}}


def save_shards(weights: dict[str, Tensor], optimizer: Optimizer, folder: Path) -> None:
    """Write `weights` and the state of their optimizer, each process its own part of them."""
    state: dict[str, Any] = {"model": {name: value.detach() for name, value in weights.items()}}
    for key in (*MOMENTS, "step"):
        state[key] = {name: optimizer.state[w][key] for name, w in weights.items() if w in optimizer.state}
    dcp.save(state, checkpoint_id=folder / SHARDS)


def load_shards(weights: dict[str, Tensor], checkpoint: Path, optimizer: Optimizer | None, alone: bool) -> None:
    """Load what `save_shards` wrote into `weights`, whole tensors or shards of them, and into the `optimizer`.

    `alone`: no other process takes part. Raises VlmkitError where the names differ.
    """
    reader = dcp.FileSystemReader(checkpoint / SHARDS)
    kept = reader.read_metadata().state_dict_metadata
    names = {name.removeprefix("model.") for name in kept if name.startswith("model.")}
    if odd := names ^ weights.keys():
        raise VlmkitError(f"{checkpoint} is of another run ({min(odd)})", "resume with the options it was begun with")
    state: dict[str, Any] = {"model": {name: value.detach() for name, value in weights.items()}}
    for name, weight in weights.items():
        if optimizer is not None and f"step.{name}" in kept:
            steps = torch.zeros((), device=weight.device)
            optimizer.state[weight] = {"step": steps} | {key: torch.zeros_like(weight) for key in MOMENTS}
            for key, value in optimizer.state[weight].items():
                state.setdefault(key, {})[name] = value
    dcp.load(state, storage_reader=reader, no_dist=alone)
