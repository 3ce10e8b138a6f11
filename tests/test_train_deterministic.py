"""A run is the same each time, however its threads are scheduled."""

import pytest
import torch

from vlmkit.train.distributed import deterministic

pytestmark = pytest.mark.slow


def gradients(times: int) -> set[bytes]:
    """Those of rows of which one is picked a thousand times; enough of them for PyTorch to use several threads."""
    torch.manual_seed(0)
    rows = torch.randn(4096, 256, requires_grad=True)
    which, back = torch.randint(0, 4096, (3000,)), torch.randn(3000, 256)
    which[::3] = 7
    found = set()
    for _ in range(times):
        (gradient,) = torch.autograd.grad(rows[which], rows, back)
        found.add(gradient.numpy().tobytes())
    return found


def test_rows_that_are_picked_twice_add_up_in_one_order() -> None:
    with deterministic("cpu"):
        assert torch.are_deterministic_algorithms_enabled() and len(gradients(60)) == 1
    assert not torch.are_deterministic_algorithms_enabled()
    print(len(gradients(60)), "different gradients without it, on", torch.get_num_threads(), "threads")
