"""`--dry-run`: what a run trains, and about what it costs."""

import time
from dataclasses import replace
from typing import Any

import torch

from vlmkit.streams import Failures
from vlmkit.train.contrastive.config import ContrastiveConfig
from vlmkit.train.contrastive.gradcache import full_batch_gradient
from vlmkit.train.contrastive.losses import Objective
from vlmkit.train.contrastive.processes import world
from vlmkit.train.contrastive.stage import opened, plan, steps_of
from vlmkit.train.mixture import Reading

SAMPLE = 8  # pictures that are tried


def estimate(config: ContrastiveConfig, failures: Failures, quiet: bool = False) -> dict[str, Any]:
    """Parameters, steps, pictures a step, and memory and seconds as a trial of a few pictures tells them: rough.

    The seconds are those of the steps, without validation and without the first pass of a locked tower.
    """
    made = plan(config, failures, quiet)
    steps = steps_of(config, made)
    some = Reading(made.training.rows[:SAMPLE], made.training.sources[:SAMPLE], made.training.table)
    small = replace(config, batch_size=SAMPLE, accumulate=1)
    trial = replace(made, config=small, training=some, validation=None)
    with opened(small, trial, steps) as learner:
        objective = Objective(learner.model, config.loss, learner.fresh)
        parameters = [(p.numel(), p.requires_grad) for p in learner.model.parameters()]
        learner.train()
        _, parts = next(learner.load([replace(batch, step=steps) for batch in trial.batches(1)]))
        kept: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: _note(x, kept), lambda x: x):
            full_batch_gradient(learner.embed, parts, objective, [])
        start = time.perf_counter()
        full_batch_gradient(learner.embed, parts, objective, [])
        seconds = time.perf_counter() - start
    trained = sum(size for size, free in parameters if free)
    total = sum(size for size, _ in parameters)
    weights = {p.untyped_storage().data_ptr() for p in learner.model.parameters()}
    activations = sum(size for place, size in kept.items() if place not in weights)
    each = min(config.batch_size, len(made.training.rows))
    at_once = each / (config.accumulate * world())
    again = 4 / 3 if config.accumulate > 1 else 1  # the forward pass is done twice
    return {
        "stage": "contrastive",
        "trainable_parameters": trained,
        "total_parameters": total,
        "samples": len(made.training.rows),
        "steps": steps,
        "samples_per_step": each,
        "memory_gb": round((4 * total + 12 * trained + activations * at_once / len(some.rows)) / 2**30, 2),
        "seconds": round(steps * each / world() * again * seconds / len(some.rows), 1),
    }


def _note(x: torch.Tensor, kept: dict[int, int]) -> torch.Tensor:
    kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    return x
