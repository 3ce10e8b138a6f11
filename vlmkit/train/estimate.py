"""`--dry-run`: what a run trains, and about what it costs.

`--dry-run`: what a run trains, and about what it costs.
"""

import time
from dataclasses import replace
from typing import Any

import torch

from vlmkit.io.terminal import Failures
from vlmkit.train.config import ContrastiveConfig, VlmConfig, check
from vlmkit.train.contrastive.gradcache import full_batch_gradient
from vlmkit.train.contrastive.losses import Objective
from vlmkit.train.contrastive.run import opened, plan, steps_of
from vlmkit.train.data.mixture import Reading
from vlmkit.train.distributed import world
from vlmkit.train.vlm.collator import Draw, Feed, collate
from vlmkit.train.vlm.lora import adapted, freeze
from vlmkit.train.vlm.run import prepare

SAMPLE = 8  # pictures that are tried


def estimate_contrastive(config: ContrastiveConfig, failures: Failures, quiet: bool = False) -> dict[str, Any]:
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


SIDE = 2048  # of the matrices whose product tells how quick the machine is
EFFICIENCY = 0.4  # of what it does there, training reaches about so much
ACTIVATIONS = 34  # bytes a token, layer and channel at 16 bits (Korthikanti and others, 2022, equation 1)


def estimate_vlm(config: VlmConfig, failures: Failures, quiet: bool = False) -> dict[str, Any]:
    """Parameters, steps, tokens a step, and memory and seconds, which are rough: within a factor of two or so."""
    check(config)
    prepared = prepare(config, failures, quiet)
    freeze(prepared.vlm, config)
    if config.lora:
        adapted(prepared.vlm.model, config)
    model: Any = prepared.vlm.model
    counts = {True: 0, False: 0}
    size = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
        size[parameter.requires_grad] += parameter.numel() * parameter.element_size()
    micro = config.batch_size // config.accumulate
    draws = prepared.draws[: min(micro, 64)]
    blank = torch.zeros(3, prepared.vlm.vision.image_size, prepared.vlm.vision.image_size)
    feed = Feed(prepared.training, lambda *_: blank, 1, 0)
    batch = collate(prepared.packer, [feed[Draw(*draw)] for draw in draws])
    tokens = batch["tokens"] * config.batch_size / len(draws)
    text = model.config.text_config
    wide = 1 if config.device == "cuda" else 2
    activations = ACTIVATIONS * wide * text.hidden_size * text.num_hidden_layers * tokens / config.accumulate
    activations += 8 * text.vocab_size * len(batch["labels"]) * micro / len(draws)
    if config.checkpointing:
        activations /= text.num_hidden_layers**0.5
    memory = size[False] + size[True] * 4 + activations  # weights, gradient, AdamW's two moments
    language = sum(p.numel() for p in model.model.language_model.parameters())
    tower = sum(p.numel() for p in model.model.vision_tower.parameters())
    pictures = 0 if batch["seen"] is None else len(batch["seen"]) / len(draws) * config.batch_size
    # Forward and backward through the language model, weights' gradients where they are trained; the tower forward.
    flops = tokens * (4 * language + 2 * counts[True]) + 2 * pictures * prepared.vlm.image_tokens * tower
    return {
        "stage": config.stage,
        "trainable_parameters": counts[True],
        "total_parameters": counts[True] + counts[False],
        "samples": sum(len(group.sequences) for group in prepared.training),
        "steps": prepared.steps,
        "tokens_per_step": round(tokens),
        "memory_gb": _rough(memory / 2**30),
        "seconds": _rough(prepared.steps * flops / (EFFICIENCY * speed(config.device))),
    }


def _rough(value: float) -> float:
    """Three digits of it."""
    return float(f"{value:.3g}")


def speed(device: str) -> float:
    """Floating-point operations a second of a large matrix product on `device`, in the type that training uses."""
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    a = torch.randn(SIDE, SIDE, device=device, dtype=kind)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(times)
