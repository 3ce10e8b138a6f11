"""Before the first step: data read, checked and turned into sequences, the model opened, the order of the run drawn."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from vlmkit.errors import VlmkitError
from vlmkit.models.connectors import reads_text
from vlmkit.models.mini.talk_unpack import trainable
from vlmkit.models.vlm import Vlm, build, open_vlm, pad_to_square
from vlmkit.records import Failed
from vlmkit.streams import Failures, tell
from vlmkit.train.dialogues import Dialogue, Preference, Reading, Turn, read_dialogues, read_preferences
from vlmkit.train.table import show
from vlmkit.train.vlm.config import VlmConfig
from vlmkit.train.vlm.feed import Draw, Group
from vlmkit.train.vlm.pack import Packer
from vlmkit.train.vlm.sequence import Chat, Encode, Plain, Sequence
from vlmkit.train.vlm.tiny import tiny_towers

TOO_LONG = "pictures or reply do not fit into max-length"
Rows = Reading[Any]


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
    read: Callable[..., Rows] = read_preferences if config.stage == "prefer" else read_dialogues
    reading = partial(read, images=config.images, limit=config.limit, failures=failures, quiet=quiet)
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
            tell(f"{len(validation.rows)} of these samples held out for validation, {len(training.rows)} to train on")
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
    if config.aspect == "pad":
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
        for made in failures.sift(self._made(reading, numbers)):
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
