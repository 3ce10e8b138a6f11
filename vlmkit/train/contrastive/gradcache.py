"""The gradient of a loss over all pairs of a batch that does not fit into memory, or lies in several processes."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.train.distributed import all_gather, all_reduce, rank

LOGITS = 2**26  # in memory at once, each way: 256 MiB
Pair = tuple[Tensor | None, Tensor | None]
Embed = Callable[[Any, bool], Pair]


def full_batch_gradient(
    embed: Embed, parts: Sequence[Any], objective: nn.Module, trained: Sequence[Tensor], sizes: Sequence[int] = ()
) -> Tensor:
    """The loss over the batch of which `parts` are this process's share; its gradients are added to the parameters.

    `sizes` are the pairs of each process; without them there is one.

    `embed(part, again)` gives unnormalised vectors (b, D) and (C, b, D). Of several parts the vectors come first
    without a graph, then the gradient with respect to them, then each part `again` with its graph, from the same state
    of the random generators; what has no gradient may then be left out (GradCache: Gao and others, 2021). The vectors
    of all processes are contrasted in each of them, and the gradients of `trained` summed, so the number of parts and
    of processes changes nothing but rounding. Batch norms from nothing are the exception: they see parts.
    """
    states, made = [], []
    with torch.set_grad_enabled(len(parts) == 1):
        for part in parts:
            states.append(random_state())
            made.append(embed(part, False))
    vectors = [torch.cat([pair[side] for pair in made], side) for side in (0, 1)]  # type: ignore[misc]  # (b, D), (C, b, D)
    sizes = sizes or [len(vectors[0])]
    leaves = [all_gather(some.detach(), side, sizes).requires_grad_() for side, some in enumerate(vectors)]
    own = range(sum(sizes[: rank()]), sum(sizes[: rank() + 1]))
    if len(sizes) == 1 and len(own) ** 2 <= LOGITS:
        loss = objective(*leaves)
        loss.backward()
    else:
        loss = _loss_by_rows(leaves, own, objective)
    widths = [len(images) for images, _ in made if images is not None]
    starts = accumulate(widths, initial=sum(sizes[: rank()]))
    for part, pair, state, width, start in zip(parts, made, states, widths, starts, strict=False):
        if len(parts) > 1:
            set_random_state(state)
            pair = embed(part, True)
        grads = (leaf.grad.narrow(side, start, width) for side, leaf in enumerate(leaves))  # type: ignore[union-attr]
        both = [(x, grad) for x, grad in zip(pair, grads, strict=True) if x is not None and x.requires_grad]
        torch.autograd.backward([x for x, _ in both], [grad for _, grad in both])
    known = {id(parameter) for parameter in objective.parameters()}  # alike in all processes
    all_reduce([p.grad for p in trained if p.grad is not None and id(p) not in known])
    return loss.detach()


def _loss_by_rows(leaves: list[Tensor], own: range, objective: Any) -> Tensor:
    """The loss, with its gradients in `leaves` and `objective`, each process computing that of its `own` rows.

    The logits of so many rows are in memory at once as `LOGITS` allows, whatever the size of the batch (local loss, and
    gathered gradients, in the terms of open_clip).
    """
    loss, rows = leaves[0].new_zeros(()), max(1, LOGITS // len(leaves[0]))
    for start in range(own.start, own.stop, rows):
        part = objective.share(*leaves, slice(start, min(start + rows, own.stop)))
        part.backward()
        loss += part.detach()
    found = [leaf.grad for leaf in leaves] + [p.grad for p in objective.parameters()]
    all_reduce([loss, *(grad for grad in found if grad is not None)])
    return loss


def random_state() -> list[Tensor]:
    """The state of torch's generators: of the CPU, and of the GPU if there is one."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
