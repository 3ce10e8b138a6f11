"""`vlmkit train align`, `instruct` and `prefer`: from a configuration to a folder that transformers opens."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from vlmkit.models.vlm import Vlm
from vlmkit.streams import Failures, steps_bar
from vlmkit.train.deterministic import deterministic
from vlmkit.train.folder import CURVES, begin, open_run
from vlmkit.train.log import Log
from vlmkit.train.ranks import first_speaks, rank
from vlmkit.train.report import reporter
from vlmkit.train.vlm.adapt import adapted, freeze
from vlmkit.train.vlm.checks import POWERS, check
from vlmkit.train.vlm.config import VlmConfig
from vlmkit.train.vlm.feed import Features, Feed, See, collate, pixels_of
from vlmkit.train.vlm.finish import finish
from vlmkit.train.vlm.learner import Learner
from vlmkit.train.vlm.prepare import Prepared, prepare
from vlmkit.train.vlm.steady import EachStep, Steady, load_trained
from vlmkit.train.vlm.trainer import VlmTrainer, arguments

Note = Callable[[str], None]


def train(
    config: VlmConfig, emit: Log, failures: Failures, note: Note, resume: bool = False, quiet: bool = False
) -> Path:
    """Run the stage; what it makes stands in `config.out` once all is done. Raises VlmkitError."""
    with deterministic(config.device), first_speaks():
        check(config)
        start = begin(config, resume)
        if start.finished:
            note(f"{config.out} is finished already")
            return config.out
        prepared = prepare(config, failures, quiet)
        freeze(prepared.vlm, config)
        folder = open_run(config)

        def log(figures: dict[str, Any]) -> None:
            emit(figures)
            report(figures)

        trainer = _trainer(config, prepared, folder, log)
        report = reporter(config.report_to if rank() == 0 else None, config.out / CURVES)
        if start.checkpoint:
            note(f"going on from step {start.checkpoint.name.rpartition('-')[2]} of {prepared.steps}")
    with deterministic(config.device), steps_bar(prepared.steps, quiet=quiet or rank() > 0) as show:
        trainer.add_callback(EachStep(show))
        trainer.run(start.checkpoint)
    if trainer.is_world_process_zero():
        finish(result(config, prepared, trainer), config, trainer.state.log_history)
    if torch.distributed.is_initialized():  # at the exit of Python its threads may abort the process
        torch.distributed.destroy_process_group()
    return config.out


def _trainer(config: VlmConfig, prepared: Prepared, folder: Path, emit: Log) -> Steady:
    settings = arguments(config, str(folder), prepared.steps, bool(prepared.validation))
    feed, validation = _feeds(config, prepared, folder, TrainingArguments(**settings).device)
    how: dict[str, Any] = {"config": config, "draws": prepared.draws, "emit": emit}
    how |= {"keep": config.keep, "patience": config.patience}
    if config.stage == "prefer":
        from vlmkit.train.vlm.prefer import Preferring

        return Preferring(prepared.vlm, feed, validation, prepared.packer, settings, **how)
    if config.lora:
        adapted(prepared.vlm.model, config)
    return VlmTrainer(
        Learner(prepared.vlm.model, config.dropout, config.smoothing),
        feed=feed,
        train_dataset=feed,
        eval_dataset=validation,
        args=TrainingArguments(**settings),
        data_collator=partial(collate, prepared.packer, power=POWERS[config.weigh]),
        **how,
    )


def _feeds(config: VlmConfig, prepared: Prepared, folder: Path, device: torch.device) -> tuple[Feed, Feed | None]:
    see: See = pixels_of(prepared.vlm, config.seed)
    if config.cache_features:
        prepared.vlm.model.to(device)  # type: ignore[arg-type]
        groups = chain(zip(prepared.training, repeat(config.views)), zip(prepared.validation, repeat(1)))
        see = Features(prepared.vlm, groups, config.seed, folder, config.workers)
    validation = Feed(prepared.validation, see, 1, config.seed) if prepared.validation else None
    return Feed(prepared.training, see, config.views, config.seed), validation


def result(config: VlmConfig, prepared: Prepared, trainer: Steady) -> Vlm:
    """The model as it was at the start, with what was trained in it, whole.

    Training may have rounded what it left alone, to bfloat16 or to 4 bits.
    """
    config = replace(config, device="cpu", quantize=None)
    vlm = prepared.reopen(config)
    freeze(vlm, config)
    if not config.lora:
        load_trained(vlm.model, trainer.chosen)
        return vlm
    model = adapted(vlm.model, config)
    load_trained(vlm.model, trainer.chosen)
    return Vlm(model.merge_and_unload(), vlm.processor)
