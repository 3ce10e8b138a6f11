"""The course of a learning rate over the steps of a run."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def rate_share(step: int, steps: int, rising: int, schedule: str, floor: float = 0.0) -> float:
    """The share of the peak rate at `step` of `steps`: it rises over `rising` steps, then follows `schedule`.

    cosine (half of one) and linear end at the share `floor`; constant stays at the peak.
    """
    if step < rising:
        return max(0, step) / rising
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - rising) / max(1, steps - rising))
    share = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
    return floor + (1 - floor) * share if floor else share


def lowest_share(peak: float, lowest: float) -> float:
    """The rate `lowest` as a share of `peak`, which it is at most."""
    return min(1.0, lowest / peak) if peak else 0.0


def schedule_of(optimizer: Optimizer, share: Callable[[dict], Callable[[int], float]]) -> LambdaLR:
    """The schedule of each group by what `share` makes of it: a function of the number of steps that are done."""
    return LambdaLR(optimizer, [share(group) for group in optimizer.param_groups])
