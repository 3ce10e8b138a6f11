"""What a run tells: one JSON object a logged step."""

import resource
from collections.abc import Callable
from typing import Any

import torch

Log = Callable[[dict[str, Any]], None]


def memory_gb() -> float:
    """The most memory used so far, on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
