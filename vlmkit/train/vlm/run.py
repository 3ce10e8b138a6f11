"""`vlmkit train align`, `instruct` and `prefer`: from a configuration to a folder that transformers opens."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import Failures, warn
from vlmkit.models.chat.template import TemplateRefusal
from vlmkit.models.chat.templates import chat_template
from vlmkit.models.llava.connectors import reads_text
from vlmkit.models.llava.import_mini import trainable
from vlmkit.models.llava.model import Vlm, build, open_vlm, pad_to_square, save, use_template
from vlmkit.train.blocks import compile_blocks
from vlmkit.train.checkpoints import load_trained
from vlmkit.train.config import LOSS_WEIGHTINGS, VlmConfig
from vlmkit.train.data.cache import key_of
from vlmkit.train.data.dataset import read_data
from vlmkit.train.data.mixture import Mixture
from vlmkit.train.data.samples import parse_dialogues, parse_preferences
from vlmkit.train.distributed import world
from vlmkit.train.model_card import vlm_card
from vlmkit.train.qformer.model import has_qformer
from vlmkit.train.qformer.run import prepare as prepare_qformer
from vlmkit.train.run import fingerprints, run_stage, show_data, split_data
from vlmkit.train.sharding import ShardedArguments, shard
from vlmkit.train.tiny_models import tiny_towers
from vlmkit.train.trainer import CheckpointedTrainer, Log, training_arguments
from vlmkit.train.vlm.attention import choose_attention
from vlmkit.train.vlm.batches import Order, SampleRef
from vlmkit.train.vlm.collator import CachedFeatures, GroupDataset, collate, pixel_reader
from vlmkit.train.vlm.groups import TokenizedGroups, tokenized_groups
from vlmkit.train.vlm.lora import DTYPES, add_adapters, freeze, warn_of_unadapted
from vlmkit.train.vlm.loss import PackedLossModel
from vlmkit.train.vlm.packing import Packer
from vlmkit.train.vlm.sft import SftTrainer, VlmTrainer
from vlmkit.train.vlm.tokenize import Chat, Encode, Plain

ROW = 1024  # tokens: lengths of rows are multiples of it
Rows = Mixture[Any]


@dataclass(frozen=True, slots=True)
class VlmStage:
    """A run that is ready to train; `reopen` gives the model as it was at the start once more, for other settings."""

    config: VlmConfig
    vlm: Vlm
    training: TokenizedGroups
    validation: TokenizedGroups | None
    refs: Sequence[SampleRef]
    steps: int
    packer: Packer
    reopen: Callable[[VlmConfig], Vlm]
    data: list[tuple[str, str]]

    def trainer(self, folder: Path, emit: Log) -> VlmTrainer:
        config, model = self.config, self.vlm.model
        freeze(self.vlm, config)
        settings = vlm_arguments(config, folder, self.steps)
        training, validation = self._datasets(folder, TrainingArguments(**settings).device)
        how: dict[str, Any] = {"config": config, "emit": emit, "refs": self.refs}
        how |= {"training": training, "validation": validation}
        if config.stage == "prefer":
            from vlmkit.train.vlm.dpo import VisionDPOTrainer

            return VisionDPOTrainer(self.vlm, self.packer, settings, **how)
        add_adapters(model, config)
        choose_attention(model.model.language_model, config.attention, config.device)
        if config.compile:
            compile_blocks(model)
        drops = config.dropout, config.label_smoothing
        learner, arguments = PackedLossModel(model, *drops, config.cache_features), TrainingArguments
        if config.saves_shards():
            shard(learner, config.device, DTYPES[config.computes_in()], config.fsdp, config.offload)
            arguments = ShardedArguments
        return SftTrainer(
            learner,
            args=arguments(**settings),
            train_dataset=training,
            data_collator=partial(collate, self.packer, power=LOSS_WEIGHTINGS[config.loss_weighting]),
            **how,
        )

    def _datasets(self, folder: Path, device: torch.device) -> tuple[GroupDataset, GroupDataset | None]:
        config, read = self.config, pixel_reader(self.vlm, self.config.seed)
        if config.cache_features:
            self.vlm.model.to(device)  # type: ignore[arg-type]
            seen = (self.training, config.augmentations), (self.validation, 1)
            groups = [(group, n) for some, n in seen if some for group in some.without_samples()]
            read = CachedFeatures(self.vlm, groups, config.seed, folder, config.loaders())
        validation = GroupDataset(self.validation, read, 1, config.seed) if self.validation else None
        return GroupDataset(self.training, read, config.augmentations, config.seed), validation

    def save(self, trainer: CheckpointedTrainer, made: Path) -> None:
        """The model as it was at the start, with what was trained in it, adapters merged.

        Training may have rounded what it left alone, to bfloat16 or to 4 bits.
        """
        config = replace(self.config, device="cpu", precision="fp32", quantize=None)
        vlm = self.reopen(config)
        freeze(vlm, config)
        model: Any = add_adapters(vlm.model, config)
        load_trained(vlm.model, trainer.chosen)
        save(Vlm(model.merge_and_unload() if config.lora else model, vlm.processor), made)

    def card(self, trainer: CheckpointedTrainer) -> str:
        return vlm_card(self.vlm, self.config, trainer.state.log_history)


def vlm_arguments(config: VlmConfig, folder: Path, steps: int) -> dict[str, Any]:
    """`config` in the terms of transformers' TrainingArguments."""
    return training_arguments(config, folder, steps) | {
        "per_device_train_batch_size": config.batch_size // (config.accumulate * world()),
        "gradient_accumulation_steps": config.accumulate,
        "bf16": config.computes_in() == "bf16" and not config.saves_shards(),  # no need of autocast
        "fp16": config.computes_in() == "fp16",
        "ddp_find_unused_parameters": False,
        "average_tokens_across_devices": False,
    }


@contextmanager
def prepare(config: VlmConfig, failures: Failures, quiet: bool = False) -> Iterator[VlmStage]:
    """Read and check the data, and open the model. Raises VlmkitError."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes are forked, each tokenizes for itself
    parse: Any = parse_preferences if config.stage == "prefer" else parse_dialogues
    read: Callable[..., Rows] = partial(
        read_data, parse=parse, images=config.images, limit=config.limit, failures=failures, quiet=quiet
    )
    training, validation = split_data(read, config.data, config.val)
    reopen = partial(open_model, rows=training.rows)
    vlm = reopen(config)
    if config.lora:
        warn_of_unadapted(vlm.model)
    encode: Encode = Plain(vlm) if config.stage == "align" else Chat(vlm)
    packer = Packer(
        image=vlm.model.config.image_token_index,
        image_tokens=vlm.image_tokens,
        pad=vlm.processor.tokenizer.pad_token_id,
        length=config.pack_length or row_length(vlm),
        share=not reads_text(vlm.model.model),
    )
    tokenize = partial(_tokenized, encode=encode, packer=packer, config=config, failures=failures, quiet=quiet)
    groups = tokenize(training)
    held_out = tokenize(validation) if validation else None
    if not quiet:
        show_data(training, validation, isinstance(config.val, float))
    refs, steps = _refs(config, groups)
    data = fingerprints(training, validation)
    if config.template:
        data.append((config.template, key_of(chat_template(config.template))))
    yield VlmStage(config, vlm, groups, held_out, refs, steps, packer, reopen, data)


def row_length(vlm: Vlm) -> int:
    """That of rows unless set: four pictures or more, so that little stays empty, within the model's context."""
    wanted = -(-4 * vlm.image_tokens // ROW) * ROW
    return min(wanted, getattr(vlm.model.config.text_config, "max_position_embeddings", None) or wanted)


def open_model(config: VlmConfig, rows: Sequence[Any]) -> Vlm:
    """The model to train: of an earlier stage, from two towers, or tiny ones made on the spot for `rows`."""
    torch.manual_seed(config.seed)
    four_bit = config.device if config.quantize else None
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
    if config.template:
        use_template(vlm, chat_template(config.template))
    if config.stage != "align":
        _stop_where_replies_end(vlm)
    return vlm


def _stop_where_replies_end(vlm: Vlm) -> None:
    """Have generation stop at the token that ends the replies that are learned, which base models do not know of."""
    generation: Any = vlm.model.generation_config
    known = generation.eos_token_id
    ends = known if isinstance(known, list) else [known] * (known is not None)
    try:
        token = Chat(vlm).stop_token()
    except TemplateRefusal:
        return
    if token is not None and token not in ends:
        generation.eos_token_id = [*ends, token]


def _refs(config: VlmConfig, groups: TokenizedGroups) -> tuple[Order, int]:
    """(what all steps of the run take, steps)."""
    places = np.full(len(groups.numbers), -1)
    places[groups.places] = np.arange(len(groups))

    def epoch(number: int) -> np.ndarray:
        draw = groups.reading.epoch_rows if config.stage == "prefer" else groups.reading.epoch_groups
        drawn = places[draw(config.seed, number)]
        return drawn[drawn >= 0]

    steps = config.steps or max(1, math.ceil(config.epochs * len(epoch(0)) / config.batch_size))
    return Order(epoch, steps * config.batch_size), steps


def _tokenized(
    reading: Rows, encode: Encode, packer: Packer, config: VlmConfig, failures: Failures, quiet: bool
) -> TokenizedGroups:
    """The groups of `reading`. Raises VlmkitError where none can be trained on."""
    before = sum(counts.cut for counts in reading.table)
    found = tokenized_groups(reading, encode, packer, config.max_length, config.loaders(), failures, quiet)
    if not len(found):
        why = ", ".join(dict.fromkeys(reason for counts in reading.table for reason in counts.lost))
        raise VlmkitError(f"no sample can be trained on: {why}", "raise --max-length, or change the data")
    if cut := sum(counts.cut for counts in reading.table) - before:
        failures.incomplete = True
        what = f"{cut} of {len(reading.rows)} samples are longer than {config.max_length} tokens and were cut"
        warn(f"{what}: raise --max-length")
    return found


def train(
    config: VlmConfig,
    emit: Log,
    failures: Failures,
    note: Callable[[str], None],
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Run the stage (see `run_stage`)."""
    opens = prepare_qformer if has_qformer(config.start) else prepare
    return run_stage(opens, config, emit, failures, note, resume, quiet)
