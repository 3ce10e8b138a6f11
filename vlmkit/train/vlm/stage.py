"""`vlmkit train align` and `instruct`: from a configuration to a folder that transformers opens."""

import math
import os
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmkit.errors import VlmkitError
from vlmkit.models.vlm import Vlm, build, open_vlm, pad_to_square
from vlmkit.records import Failed
from vlmkit.streams import Failures
from vlmkit.train.dialogues import Dialogue, Reading, read_dialogues
from vlmkit.train.folder import FINISHED, begin, open_run
from vlmkit.train.log import Log
from vlmkit.train.table import show
from vlmkit.train.vlm.adapt import check_device, freeze, merged
from vlmkit.train.vlm.config import VlmConfig
from vlmkit.train.vlm.feed import Draw, Features, Feed, Group, collator, pixels_of
from vlmkit.train.vlm.finish import finish
from vlmkit.train.vlm.learner import Learner
from vlmkit.train.vlm.pack import Packer
from vlmkit.train.vlm.sequence import Chat, Encode, Plain, Sequence
from vlmkit.train.vlm.tiny import tiny_towers
from vlmkit.train.vlm.trainer import VlmTrainer, arguments

RANK = os.environ.get("RANK", "0")
TOO_LONG = "its pictures or its reply do not fit into --max-length"


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a run needs, before its first step."""

    vlm: Vlm
    training: list[Group]
    validation: list[Group]
    draws: list[Draw]
    steps: int
    packer: Packer


def prepare(config: VlmConfig, failures: Failures, world: int = 1) -> Prepared:
    """Read and check the data, and build the model. Raises VlmkitError."""
    reading = read_dialogues(config.data, images=config.images, limit=config.limit, failures=failures)
    held_out: Reading[Dialogue] | None = None
    if isinstance(config.val, float):
        reading, held_out = reading.split(config.val)
    elif config.val:
        held_out = read_dialogues([config.val], images=config.images, limit=config.limit, failures=failures)
    vlm = opened(config, reading)
    encode: Encode = Plain(vlm) if config.stage == "align" else Chat(vlm)
    reads_text = getattr(vlm.model.model.multi_modal_projector, "reads_text", False)
    tokenizer = vlm.processor.tokenizer
    image = vlm.model.config.image_token_index
    packer = Packer(image, vlm.image_tokens, tokenizer.pad_token_id, config.pack_length, share=not reads_text)
    training, places = _groups(reading, encode, packer, config.max_length, failures)
    validation = _groups(held_out, encode, packer, config.max_length, failures)[0] if held_out else []
    show(reading.table)
    epochs = _Epochs(reading, places, config.seed)
    steps = config.steps or max(1, math.ceil(config.epochs * len(epochs.draw(0)) / config.batch_size))
    draws: list[Draw] = []
    epoch = 0
    while len(draws) < steps * config.batch_size:
        draws += epochs.draw(epoch)
        epoch += 1
    return Prepared(vlm, training, validation, draws[: steps * config.batch_size], steps, packer)


def opened(config: VlmConfig, reading: Reading[Any]) -> Vlm:
    """The model to train: of an earlier stage, from two towers, or tiny ones that are made on the spot."""
    if config.start is None:
        if config.vision is None or config.llm is None:
            lacking = "--vision" if config.vision is None else "--llm"
            raise VlmkitError(f"{lacking} is missing", "name the tower, or a --preset, or give --from")
        with tiny_towers(config.vision, config.llm, reading.rows) as (vision, llm):
            vlm = build(vision, llm, config.connector or "mlp", config.seed)
    else:
        vlm = open_vlm(config.start)
        if config.connector not in (None, vlm.connector):
            raise VlmkitError(f"{config.start} has the connector {vlm.connector}, not {config.connector}",
                              "leave --connector out, or begin anew without --from")  # fmt: skip
        for flag, name in (("--vision", config.vision), ("--llm", config.llm)):
            if name is not None:
                raise VlmkitError(f"{config.start} brings its own towers", f"leave {flag} out, or begin without --from")
    if config.aspect == "pad":
        pad_to_square(vlm)
    return vlm


class _Epochs:
    def __init__(self, reading: Reading[Any], places: list[int | None], seed: int) -> None:
        self.reading, self.places, self.seed = reading, places, seed

    def draw(self, epoch: int) -> list[Draw]:
        drawn = (self.places[group] for group in self.reading.epoch_groups(self.seed, epoch))
        return [Draw(place, epoch) for place in drawn if place is not None]


def _groups(
    reading: Reading[Dialogue], encode: Encode, packer: Packer, max_length: int, failures: Failures
) -> tuple[list[Group], list[int | None]]:
    """(groups, where each group of `reading` is among them); samples that do not fit are told and left out."""
    found: list[Group] = []
    places: list[int | None] = []
    for group in reading.groups:
        rows = [reading.rows[i] for i in group]
        fitting = [(row, fit(encode(row), packer, max_length)) for row in rows]
        sequences = [sequence for _, sequence in fitting if sequence is not None]
        for (row, sequence), number in zip(fitting, group, strict=True):
            if sequence is None:
                counts = reading.table[reading.sources[number]]
                counts.samples -= 1
                counts.reasons[TOO_LONG] += 1
                deque(failures.sift([Failed(row.id, None, TOO_LONG)]), maxlen=0)
        places.append(len(found) if sequences else None)
        if sequences:
            found.append(Group(rows[0].id, rows[0].pictures, sequences, all(row.mirror for row in rows)))
    if not found:
        raise VlmkitError("no sample fits into --max-length", "raise --max-length")
    return found, places


def fit(sequence: Sequence, packer: Packer, length: int) -> Sequence | None:
    """`sequence` cut to `length` tokens; None if that cut a picture, or all that is learned."""
    if packer.size(sequence) <= length:
        return sequence
    images = sequence.ids == packer.image
    ends = np.cumsum(np.where(images, packer.image_tokens, 1))
    kept = int((ends <= length).sum())
    if images[kept:].any() or not sequence.learned[:kept].any():
        return None
    return sequence.start(kept)


def train(config: VlmConfig, emit: Log, failures: Failures, note: Callable[[str], None], resume: bool = False) -> Path:
    """Run the stage; what it makes stands in `config.out` once all is done. Raises VlmkitError."""
    check_device(config)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch_size % (config.accumulate * world):
        raise VlmkitError(f"{config.batch_size} pictures do not divide into {config.accumulate * world} equal parts",
                          "change --batch-size or --accumulate")  # fmt: skip
    checkpoint = begin(config, resume)
    if checkpoint is FINISHED:
        note(f"{config.out} is finished already")
        return config.out
    prepared = prepare(config, failures)
    vlm = prepared.vlm
    adapter = freeze(vlm, config)
    learner = Learner(vlm.model, config.dropout, config.smoothing)
    folder = open_run(config)
    args = arguments(config, str(folder), prepared.steps, world, bool(prepared.validation))
    trainer = VlmTrainer(
        learner,
        config,
        *_feeds(config, prepared, folder, args.device),
        draws=prepared.draws,
        args=args,
        data_collator=collator(prepared.packer),
        emit=emit,
        keep=config.keep,
        patience=config.patience,
    )
    if checkpoint:
        note(f"going on from step {checkpoint.name.rpartition('-')[2]} of {prepared.steps}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.load_best()
    if trainer.is_world_process_zero():
        finish(merged(vlm, adapter), config, trainer.state.log_history)
        shutil.rmtree(folder)
    return config.out


def _feeds(config: VlmConfig, prepared: Prepared, folder: Path, device: torch.device) -> tuple[Feed, Feed | None]:
    see: Any = pixels_of(prepared.vlm)
    if config.cache_features:
        prepared.vlm.model.to(device)  # type: ignore[arg-type]
        groups = [*prepared.training, *(replace(group, mirror=False) for group in prepared.validation)]
        see = Features(prepared.vlm, groups, config.mirror, folder / f"features-{RANK}.f16", config.workers)
    validation = Feed(prepared.validation, see, False, config.seed) if prepared.validation else None
    return Feed(prepared.training, see, config.mirror, config.seed), validation
