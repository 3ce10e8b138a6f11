"""The end of a run: a standard folder that transformers 5 and 4.57 open.

Before the first step: data read, checked and turned into sequences, the model opened, the order of the run drawn.

`vlmkit train align`, `instruct` and `prefer`: from a configuration to a folder that transformers opens.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from vlmkit.errors import VlmkitError
from vlmkit.io.records import Failed
from vlmkit.io.terminal import Failures, steps_bar, warn
from vlmkit.models.llava.connectors import reads_text
from vlmkit.models.llava.import_mini import trainable
from vlmkit.models.llava.model import Vlm, build, open_vlm, pad_to_square, save
from vlmkit.train.checkpoints import CURVES, begin, finishing, open_run
from vlmkit.train.config import LOSS_WEIGHTINGS, VlmConfig, check
from vlmkit.train.data.dataset import read_data
from vlmkit.train.data.mixture import Mixture
from vlmkit.train.data.report import show
from vlmkit.train.data.samples import Dialogue, Preference, Turn, parse_dialogues, parse_preferences
from vlmkit.train.distributed import deterministic, rank, rank_zero_only
from vlmkit.train.model_card import vlm_card
from vlmkit.train.tiny_models import tiny_towers
from vlmkit.train.trainer import CheckpointedTrainer, EachStep, Log, load_trained, plot_losses, reporter
from vlmkit.train.vlm.collator import Draw, Features, Feed, Group, See, collate, pixels_of
from vlmkit.train.vlm.lora import adapted, freeze
from vlmkit.train.vlm.loss import Learner
from vlmkit.train.vlm.packing import Packer
from vlmkit.train.vlm.sft import VlmTrainer, arguments
from vlmkit.train.vlm.tokenize import Chat, Encode, Plain, Sequence


def finish(vlm: Vlm, config: VlmConfig, history: list[dict[str, Any]]) -> None:
    """Write the model into `config.out`. Raises VlmkitError where there is no room for it."""
    with finishing(config) as made:
        save(vlm, made)
        plot_losses(history, made / "loss.png")
        (made / "README.md").write_text(vlm_card(vlm, config, history))


TOO_LONG = "pictures or reply do not fit into max-length"
Rows = Mixture[Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a run needs; `reopen` gives the model as it was at the start once more, for other settings."""

    vlm: Vlm
    training: list[Group]
    validation: list[Group]
    draws: list[Draw]
    steps: int
    packer: Packer
    reopen: Callable[[VlmConfig], Vlm]


def prepare(config: VlmConfig, failures: Failures, quiet: bool = False) -> Prepared:
    """Read and check the data, and open the model. Raises VlmkitError."""
    parse: Any = parse_preferences if config.stage == "prefer" else parse_dialogues
    reading: Callable[..., Rows] = partial(
        read_data, parse=parse, images=config.images, limit=config.limit, failures=failures, quiet=quiet
    )
    training, validation = reading(config.data), None
    if isinstance(config.val, float):
        training, validation = training.split(config.val)
    elif config.val:
        validation = reading([config.val])
    reopen = partial(opened, rows=training.rows)
    vlm = reopen(config)
    encode: Encode = Plain(vlm) if config.stage == "align" else Chat(vlm)
    packer = Packer(
        image=vlm.model.config.image_token_index,
        image_tokens=vlm.image_tokens,
        pad=vlm.processor.tokenizer.pad_token_id,
        length=config.pack_length,
        share=not reads_text(vlm.model.model),
    )
    learned = _Learned(encode, packer, config.max_length)
    groups, places = learned.groups(training, failures)
    held_out = learned.groups(validation, failures)[0] if validation else []
    if not quiet:
        show(training.table)
        if isinstance(config.val, str) and validation:
            show(validation.table)
        elif validation:
            warn(f"{len(validation.rows)} of these samples held out for validation, {len(training.rows)} to train on")
    draws, steps = _draws(config, lambda epoch: _epoch(training, places, config, epoch))
    return Prepared(vlm, groups, held_out, draws, steps, packer, reopen)


def opened(config: VlmConfig, rows: list[Any]) -> Vlm:
    """The model to train: of an earlier stage, from two towers, or tiny ones made on the spot for `rows`."""
    torch.manual_seed(config.seed)
    four_bit = config.quantize is not None
    if config.start is None:
        for flag, tower in (("--vision", config.vision), ("--llm", config.llm)):
            if tower is None:
                raise VlmkitError(f"{flag} is missing", "name the tower, or a --preset, or give --from")
        with tiny_towers(str(config.vision), str(config.llm), rows) as (vision, llm):
            vlm = build(vision, llm, config.connector or "mlp", four_bit)
    else:
        for flag, tower in (("--vision", config.vision), ("--llm", config.llm)):
            if tower is not None:
                remedy = f"leave {flag} out, or begin without --from"
                raise VlmkitError(f"{config.start} brings its own towers", remedy)
        with trainable(config.start) as start:
            vlm = open_vlm(start, four_bit)
        if config.connector not in (None, vlm.connector):
            what = f"{config.start} has the connector {vlm.connector}, not {config.connector}"
            raise VlmkitError(what, "leave --connector out, or begin anew without --from")
    if config.image_aspect == "pad":
        pad_to_square(vlm)
    return vlm


def _draws(config: VlmConfig, epoch: Callable[[int], list[Draw]]) -> tuple[list[Draw], int]:
    """(all draws of the run, steps)."""
    steps = config.steps or max(1, math.ceil(config.epochs * len(epoch(0)) / config.batch_size))
    draws: list[Draw] = []
    number = 0
    while len(draws) < steps * config.batch_size:
        draws += epoch(number)
        number += 1
    return draws[: steps * config.batch_size], steps


def _epoch(reading: Rows, places: list[int | None], config: VlmConfig, epoch: int) -> list[Draw]:
    drawn = (reading.epoch_rows if config.stage == "prefer" else reading.epoch_groups)(config.seed, epoch)
    return [Draw(place, epoch) for number in drawn if (place := places[number]) is not None]


@dataclass(frozen=True, slots=True)
class _Learned:
    """Rows become groups of sequences."""

    encode: Encode
    packer: Packer
    length: int

    def groups(self, reading: Rows, failures: Failures) -> tuple[list[Group], list[int | None]]:
        """(groups, where that of each drawn number is); samples that do not fit are told and left out.

        Preferences are drawn one by one, dialogues about the same pictures together.
        """
        alone = isinstance(reading.rows[0], Preference)
        numbers = [[number] for number in range(len(reading.rows))] if alone else reading.groups
        found: list[Group] = []
        places: list[int | None] = []
        for made in failures.filter_failures(self._made(reading, numbers)):
            places.append(len(found) if made.sequences else None)
            if made.sequences:
                found.append(made)
        if not found:
            raise VlmkitError("no sample fits into max-length", "raise it in --config")
        return found, places

    def _made(self, reading: Rows, numbers: list[list[int]]) -> Iterator[Group | Failed]:
        for some in numbers:
            sequences: list[Sequence] = []
            for number in some:
                row = reading.rows[number]
                fitting = [fit(self.encode(dialogue), self.packer, self.length) for dialogue in _said(row)]
                if None not in fitting:
                    sequences += [sequence for sequence in fitting if sequence is not None]
                    continue
                reading.table[reading.sources[number]].drop_sample(TOO_LONG)
                yield Failed(row.id, None, f"its {TOO_LONG}")
            rows = [reading.rows[number] for number in some]
            mirror = all(getattr(row, "mirror", False) for row in rows)
            yield Group(rows[0].id, rows[0].pictures, sequences, mirror)


def _said(row: Dialogue | Preference) -> list[Dialogue]:
    if isinstance(row, Dialogue):
        return [row]
    replies = row.chosen, row.rejected
    return [Dialogue(row.id, row.pictures, (Turn(row.question, reply),), row.system) for reply in replies]


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


Note = Callable[[str], None]


def train(
    config: VlmConfig, emit: Log, failures: Failures, note: Note, resume: bool = False, quiet: bool = False
) -> Path:
    """Run the stage; what it makes stands in `config.out` once all is done. Raises VlmkitError."""
    with deterministic(config.device), rank_zero_only():
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


def _trainer(config: VlmConfig, prepared: Prepared, folder: Path, emit: Log) -> CheckpointedTrainer:
    settings = arguments(config, str(folder), prepared.steps, bool(prepared.validation))
    feed, validation = _feeds(config, prepared, folder, TrainingArguments(**settings).device)
    how: dict[str, Any] = {"config": config, "draws": prepared.draws, "emit": emit}
    how |= {"keep": config.keep, "patience": config.patience}
    if config.stage == "prefer":
        from vlmkit.train.vlm.dpo import VisionDPOTrainer

        return VisionDPOTrainer(prepared.vlm, feed, validation, prepared.packer, settings, **how)
    if config.lora:
        adapted(prepared.vlm.model, config)
    return VlmTrainer(
        Learner(prepared.vlm.model, config.dropout, config.label_smoothing),
        feed=feed,
        train_dataset=feed,
        eval_dataset=validation,
        args=TrainingArguments(**settings),
        data_collator=partial(collate, prepared.packer, power=LOSS_WEIGHTINGS[config.loss_weighting]),
        **how,
    )


def _feeds(config: VlmConfig, prepared: Prepared, folder: Path, device: torch.device) -> tuple[Feed, Feed | None]:
    see: See = pixels_of(prepared.vlm, config.seed)
    if config.cache_features:
        prepared.vlm.model.to(device)  # type: ignore[arg-type]
        groups = chain(zip(prepared.training, repeat(config.augmentations)), zip(prepared.validation, repeat(1)))
        see = Features(prepared.vlm, groups, config.seed, folder, config.workers)
    validation = Feed(prepared.validation, see, 1, config.seed) if prepared.validation else None
    return Feed(prepared.training, see, config.augmentations, config.seed), validation


def result(config: VlmConfig, prepared: Prepared, trainer: CheckpointedTrainer) -> Vlm:
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
