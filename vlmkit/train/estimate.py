"""`vlmkit train --dry-run`: the size of a run, and an estimate of its memory and time."""

import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from vlmkit.io.terminal import Failures, warn
from vlmkit.train.checks import check
from vlmkit.train.config import ContrastiveConfig, VlmConfig
from vlmkit.train.contrastive.gradcache import full_batch_gradient
from vlmkit.train.contrastive.loader import CHUNK, PictureLoader
from vlmkit.train.contrastive.losses import Objective
from vlmkit.train.contrastive.model import DualEncoder
from vlmkit.train.contrastive.run import open_model, plan, steps_of
from vlmkit.train.contrastive.sampler import run_batches
from vlmkit.train.cost import EFFICIENCY, Sizes, flops, memory
from vlmkit.train.data.loader import rate_of
from vlmkit.train.data.mixture import Mixture
from vlmkit.train.distributed import world
from vlmkit.train.qformer.model import has_qformer
from vlmkit.train.qformer.run import plan as plan_qformer
from vlmkit.train.run import show_data
from vlmkit.train.trainer import checked
from vlmkit.train.vlm.batches import OrderedSampler
from vlmkit.train.vlm.collator import GroupDataset, collate, pixel_reader
from vlmkit.train.vlm.lora import add_adapters, freeze
from vlmkit.train.vlm.run import VlmStage, prepare
from vlmkit.train.vlm.sft import loader_of

TRIAL = 8  # pictures that contrastive training is tried on
SIDE = 2048  # of the matrices whose product measures the speed of the machine


def estimate(config: ContrastiveConfig | VlmConfig, failures: Failures, quiet: bool = False) -> dict[str, Any]:
    """Parameters, samples, steps, samples or tokens a step, memory (GiB) and seconds; both are rough.

    And what the loader alone reads a second, measured for TRIAL_SECONDS; it is warned of where that starves the model.
    Raises VlmkitError where the configuration or the data do not fit.
    """
    check(config)
    if isinstance(config, ContrastiveConfig):
        return _contrastive(config, failures, quiet)
    if has_qformer(config.start):
        return plan_qformer(config, failures, quiet)
    return _vlm(config, failures, quiet)


def _parameters(model: nn.Module) -> dict[str, int]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"trainable_parameters": trained, "total_parameters": sum(p.numel() for p in model.parameters())}


def _contrastive(config: ContrastiveConfig, failures: Failures, quiet: bool) -> dict[str, Any]:
    """The estimate from a trial on a few pictures; without validation and the first pass of a locked tower."""
    made = plan(config, failures, quiet)
    if not quiet:
        show_data(made.training, made.validation, isinstance(config.val, float))
    steps = steps_of(config, made)
    rows: Any = made.training.rows
    some = Mixture(rows.only(np.arange(min(TRIAL, len(rows)))), made.training.sources[:TRIAL], made.training.table)
    small = replace(config, batch_size=TRIAL, accumulate=1)
    kept: dict[int, int] = {}  # bytes by address

    def note(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    trial = replace(made, config=small, training=some, validation=None)
    with open_model(small, trial, steps) as trained:
        objective = Objective(trained.model, config.loss, trained.from_scratch)
        parameters = _parameters(trained.model)
        trained.train()
        parts = next(trained.load([replace(batch, step=steps) for batch in trial.batches(1)]))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            full_batch_gradient(trained.embed, parts, objective, [])
        start = time.perf_counter()
        full_batch_gradient(trained.embed, parts, objective, [])
        seconds = (time.perf_counter() - start) / len(some.rows)
        weights = {p.untyped_storage().data_ptr() for p in trained.model.parameters()}
        loader = PictureLoader(config, trained.embedder, rows) if isinstance(trained, DualEncoder) else None
    activations = sum(size for place, size in kept.items() if place not in weights) / len(some.rows)
    batch = min(config.batch_size, len(made.training.rows))
    passes = 4 / 3 if config.accumulate > 1 else 1  # the forward pass is done twice
    memory: float = 4 * parameters["total_parameters"] + 12 * parameters["trainable_parameters"]
    memory += activations * batch / (config.accumulate * world())
    rates: dict[str, Any] = {}
    if loader is not None:  # a locked tower sees all pictures before the first step
        coming = (chunk for some in run_batches(made.batches, sys.maxsize) for chunk in some.chunks(CHUNK))
        found = rate_of(loader.read(coming, CHUNK), lambda chunk: len(chunk.pictures["pixel_values"]))
        rates = _loading({"pictures": found}, 1 / (passes * seconds), config, quiet)
    return {
        "stage": config.stage,
        **parameters,
        "samples": len(made.training.rows),
        "steps": steps,
        "samples_per_step": batch,
        "memory_gb": round(memory / 2**30, 2),
        "seconds": round(steps * batch / world() * passes * seconds, 1),
        **rates,
    }


def _vlm(config: VlmConfig, failures: Failures, quiet: bool) -> dict[str, Any]:
    """The estimate from the operations that the tokens of a batch need, and the speed of the machine."""
    with prepare(config, failures, quiet) as prepared:
        freeze(prepared.vlm, config)
        add_adapters(prepared.vlm.model, config)
    model: Any = prepared.vlm.model
    parameters = _parameters(model)
    parts = config.accumulate * world()
    refs = prepared.refs[: min(config.batch_size // parts, 64)]
    blank = torch.zeros(3, prepared.vlm.vision.image_size, prepared.vlm.vision.image_size)
    groups = GroupDataset(prepared.training, lambda *_: blank, 1, 0)
    batch = collate(prepared.packer, [groups.read(ref) for ref in refs])
    scale = config.batch_size / len(refs)
    tokens, once = batch["tokens"] * scale, batch["slots"] * scale / parts  # of a step, of a micro-batch with padding
    if config.stage != "prefer":
        once = min(once, max(config.max_tokens_per_batch, batch["input_ids"].shape[1]))
    pictures = 0 if batch["pixel_values"] is None else len(batch["pixel_values"]) * scale
    sizes = sizes_of(model)
    how: dict[str, Any] = {"masters": config.saves_shards(), "checkpointing": config.checkpointing}
    how["shards"] = world() if config.fsdp else 1
    number = 4 if config.computes_in() == "fp32" else 2
    needed = memory(sizes, once, round(len(batch["labels"]) * scale / parts), number, **how)
    work = flops(sizes, tokens, pictures * prepared.vlm.image_tokens) / world()
    seconds = prepared.steps * work / (EFFICIENCY * _speed(config.device))
    taken = (pictures or scale * sum(map(len, (groups.groups[ref.group].samples for ref in refs)))) / seconds / world()
    rates = {} if config.cache_features else _vlm_loading(prepared, prepared.steps * taken, quiet)
    return {
        "stage": config.stage,
        **parameters,
        "samples": int(prepared.training.sizes.values.sum()),
        "steps": prepared.steps,
        "tokens_per_step": round(tokens),
        "memory_gb": float(f"{needed / 2**30:.3g}"),
        "seconds": float(f"{seconds:.3g}"),
        **rates,
    }


def _vlm_loading(prepared: VlmStage, taken: float, quiet: bool) -> dict[str, Any]:
    """The rates of the loader of a run, in batches of TRIAL groups."""
    config = prepared.config

    def counted(items: list[Any]) -> dict[str, Any]:
        collate(prepared.packer, items)
        return {"rows": sum(len(group.samples) for group, _ in items), "pictures": sum(len(x) for _, x in items)}

    groups = GroupDataset(prepared.training, pixel_reader(prepared.vlm, config.seed), config.augmentations, config.seed)
    batches = loader_of(config, groups, OrderedSampler(prepared.refs, TRIAL), counted)
    rates = rate_of(map(checked, batches), lambda batch: np.array([batch["pictures"], batch["rows"]]))
    both = dict(zip(("pictures", "rows"), np.broadcast_to(rates, 2).tolist(), strict=True))
    return _loading({name: rate for name, rate in both.items() if rate or name == "rows"}, taken, config, quiet)


def _loading(rates: dict[str, float], taken: float, config: Any, quiet: bool) -> dict[str, Any]:
    """What is told of the loader alone, whose first rate is compared with what the model could take a second."""
    name, rate = next(iter(rates.items()))
    if 0 < rate < taken and not quiet:
        cached = ", or --cache-features" if hasattr(config, "cache_features") and not config.train_vision else ""
        what = f"reading alone gives {rate:.0f} {name} a second, the model could take about {taken:.0f}"
        warn(f"{what}: it will wait; more --workers on more cores and smaller picture files help{cached}")
    return {f"loader_{name}_per_s": round(rate, 1) for name, rate in rates.items()} | {"workers": config.loaders()}


def sizes_of(model: Any) -> Sizes:
    """The sizes of a LLaVA that is ready to train."""
    text = model.config.text_config
    return Sizes(
        trained=_parameters(model)["trainable_parameters"],
        frozen_bytes=sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad),
        language=sum(p.numel() for p in model.model.language_model.parameters()),
        tower=sum(p.numel() for p in model.model.vision_tower.parameters()),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=getattr(text, "intermediate_size", 4 * text.hidden_size),
        vocabulary=text.vocab_size,
    )


def _speed(device: str) -> float:
    """Floating-point operations a second of a large matrix product on `device`, in the type that training uses."""
    a = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(times)
