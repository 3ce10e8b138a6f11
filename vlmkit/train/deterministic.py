"""The same bytes from the same run, on a CPU of several cores."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
