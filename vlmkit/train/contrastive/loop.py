"""One optimisation step at a time: AdamW, cosine rate with warm-up."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from vlmkit.errors import VlmkitError
from vlmkit.train.contrastive.gradcache import Embed, full_batch_gradient
from vlmkit.train.contrastive.losses import Objective


class Peak(NamedTuple):
    """The highest rate of some parameters, by what it is called in the log; they rest for the first `start` steps."""

    name: str
    rate: float
    start: int = 0


def rate(step: int, steps: int, warmup: float) -> float:
    """The share of the peak rate at `step` (from 1) of `steps`: linear warm-up, then half a cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step <= rising:
        return step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def optimizer_for(model: nn.Module, peak: Callable[[str], Peak], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what is not locked, each parameter at the rate of its name; no decay for biases, norms, the scale.

    Betas and epsilon are CLIP's for its vision transformers (Radford and others, 2021, table 20).
    """
    groups: dict[tuple[Peak, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((peak(name), decay), []).append(parameter)
    listed = [
        {"params": some, "lr": 0.0, "weight_decay": decay} | {"peak": p.rate, "start": p.start, "rate": p.name}
        for (p, decay), some in groups.items()
    ]
    return torch.optim.AdamW(listed, betas=(0.9, 0.98), eps=1e-6)


class Loop:
    """`step` counts the steps done, of `steps`."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, objective: Objective, steps: int, warmup: float, clip: float = 1.0
    ) -> None:
        self.optimizer, self.objective, self.step = optimizer, objective, 0
        self.steps, self.warmup, self.clip = steps, warmup, clip

    def update(self, embed: Embed, parts: Sequence[Any], ids: Callable[[], list[str]]) -> dict[str, float]:
        """One step on this process's `parts` of a batch (see `full_batch_gradient`): its figures.

        Raises VlmkitError naming the pictures (`ids`) of the batch when the loss is not finite.
        """
        self.step += 1
        for group in self.optimizer.param_groups:
            start = group["start"]
            share = rate(self.step - start, self.steps - start, self.warmup) if self.step > start else 0.0
            group["lr"] = group["peak"] * share
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.zero_grad()
        loss = full_batch_gradient(embed, parts, self.objective, parameters)
        if not math.isfinite(loss):
            what = f"the loss is {loss} at step {self.step}, pictures {', '.join(ids())}"
            raise VlmkitError(what, "try a lower rate, in a new folder")
        norm = nn.utils.clip_grad_norm_(parameters, self.clip, error_if_nonfinite=False).item()
        self.optimizer.step()
        self.objective.clamp()
        rates = {group["rate"]: group["lr"] for group in self.optimizer.param_groups}
        return {"step": self.step, "loss": loss} | rates | {"grad_norm": norm} | self.objective.figures()
