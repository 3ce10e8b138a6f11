"""Where a run stands, and its checkpoints: all that a killed run needs to go on as if nothing had been."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmkit.errors import VlmkitError
from vlmkit.train.checkpoints import checkpoint_of, drop_old, staged
from vlmkit.train.contrastive.gradcache import random_state, set_random_state
from vlmkit.train.contrastive.processes import rank, spread

WEIGHTS, OPTIMIZER, STATE = "trained.safetensors", "optimizer.pt", "state.json"


@dataclass(slots=True)
class State:
    """`recall` is the mean of the six recalls of a validation."""

    step: int = 0
    first: float | None = None  # the recall before step 1
    best: float | None = None  # the highest recall since
    best_step: int | None = None
    waited: int = 0  # validations since the best
    warned: bool = False  # whether the last one was below the first
    history: list[dict[str, Any]] = field(default_factory=list)  # what was logged

    def judge(self, recall: float) -> bool:
        """Take in the recall of a validation: whether it is the best one."""
        if self.step == 0:
            self.first = recall
            return False
        better = self.best is None or recall > self.best
        self.best, self.best_step, self.waited = (
            (recall, self.step, 0) if better else (self.best, self.best_step, self.waited + 1)
        )
        return better


def save_checkpoint(folder: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> None:
    """Write the checkpoint of `state.step` and remove old ones but the last `keep` and the best."""
    if checkpoint_of(folder, state.step).exists():
        return
    weights = changing(model)
    spread([value for name, value in weights.items() if name not in dict(model.named_parameters())])
    with staged(folder, state.step, rank() == 0) as made:
        made.mkdir(parents=True, exist_ok=True)
        torch.save(random_state(), made / f"random-{rank()}.pt")
        if rank() == 0:
            save_file({name: value.detach().cpu().clone() for name, value in weights.items()}, made / WEIGHTS)
            torch.save(optimizer.state_dict(), made / OPTIMIZER)
            (made / STATE).write_text(json.dumps(asdict(state)))
    if rank() == 0:
        drop_old(folder, keep, state.best_step)


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Go on from `checkpoint`. Raises VlmkitError where it is of another run."""
    load_weights(checkpoint, model)
    optimizer.load_state_dict(torch.load(checkpoint / OPTIMIZER, weights_only=True))
    random = checkpoint / f"random-{rank()}.pt"
    if not random.is_file():
        raise VlmkitError(f"{checkpoint} was made by fewer processes", "resume with as many as it was begun with")
    set_random_state(torch.load(random, weights_only=True))
    return State(**json.loads((checkpoint / STATE).read_text()))


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Load what `save_checkpoint` wrote of `model`, all of it. Raises VlmkitError where the names differ."""
    weights, places = load_file(checkpoint / WEIGHTS), changing(model)
    if odd := weights.keys() ^ places.keys():
        raise VlmkitError(f"{checkpoint} is of another run ({min(odd)})", "resume with the options it was begun with")
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(weights[name])


def changing(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that are not locked, and buffers."""
    locked = {name for name, value in model.named_parameters() if not value.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in locked}
