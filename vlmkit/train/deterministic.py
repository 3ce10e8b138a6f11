"""The same bytes from the same run, on a CPU of several cores."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Gradients of rows that are picked twice (`x[rows]`) add up in one order, not in that in which threads come.

    On a CPU alone: on CUDA such gradients are sorted first, and in this mode other operations are refused.
    """
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    if device == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled
