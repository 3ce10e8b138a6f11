"""The stages align and instruct of a BLIP-2 or InstructBLIP: from a configuration to a folder."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import Failures
from vlmkit.train.checkpoints import load_trained
from vlmkit.train.config import VlmConfig, name_of
from vlmkit.train.data.dataset import read_data
from vlmkit.train.data.samples import parse_dialogues
from vlmkit.train.model_card import qformer_card
from vlmkit.train.qformer.model import TRAINED, QFormerLossModel, QFormerModel, open_qformer
from vlmkit.train.qformer.samples import Collate, Encoder, SampleDataset, Samples, usable
from vlmkit.train.run import fingerprints, show_data, split_data
from vlmkit.train.settings import Stage
from vlmkit.train.trainer import CheckpointedTrainer, Log
from vlmkit.train.vlm.batches import Order, OrderedSampler
from vlmkit.train.vlm.collator import pixel_reader
from vlmkit.train.vlm.sft import SftTrainer, VlmTrainer

WITHOUT_USE = (
    *(
        "vision",
        "llm",
        "connector",
        "template",
        "quantize",
        "train_vision",
        "cache_features",
        "checkpointing",
        "compile",
    ),
    *("fsdp", "offload", "attention", "pack_length", "label_smoothing", "loss_weighting"),
    *("max_tokens_per_batch", "max_pictures_per_batch"),
)


class QFormerTrainer(SftTrainer):
    """An `SftTrainer` without packing: a micro-batch goes through the model as it is."""

    model: Any

    def sampler(self, groups: Any, refs: Any, rank: int = 0, world: int = 1) -> OrderedSampler:
        return VlmTrainer.sampler(self, groups, refs, rank, world)

    def rates(self) -> dict[str, float]:
        return dict.fromkeys(TRAINED, self.config.projector_lr)


@dataclass(frozen=True, slots=True)
class QFormerStage:
    """A run that is ready to train."""

    config: VlmConfig
    opened: QFormerModel
    training: Samples
    validation: Samples | None
    refs: Order
    steps: int
    data: list[tuple[str, str]]

    def trainer(self, folder: Path, emit: Log) -> CheckpointedTrainer:
        from vlmkit.train.vlm.run import vlm_arguments

        config, opened = self.config, self.opened
        read: Any = pixel_reader(opened, config.seed)  # type: ignore[arg-type]
        words = opened.processor.qformer_tokenizer if opened.reads_question else None
        pads = opened.processor.tokenizer.pad_token_id, words.pad_token_id if words else 0
        held_out = SampleDataset(self.validation, read, 1, config.seed) if self.validation else None
        dataset = SampleDataset(self.training, read, config.augmentations, config.seed)
        return QFormerTrainer(
            QFormerLossModel(opened.model, config),
            args=TrainingArguments(**vlm_arguments(config, folder, self.steps)),
            train_dataset=dataset,
            data_collator=Collate(*pads),
            config=config,
            emit=emit,
            training=dataset,
            validation=held_out,
            refs=self.refs,
        )

    def save(self, trainer: CheckpointedTrainer, made: Path) -> None:
        """The model as it was at the start, with what was trained in it, adapters merged."""
        opened = open_qformer(str(self.config.start))
        learner = QFormerLossModel(opened.model, replace(self.config, device="cpu", precision="fp32"))
        load_trained(learner.model, trainer.chosen)
        learner.merged().save_pretrained(made)
        opened.processor.save_pretrained(made)

    def card(self, trainer: CheckpointedTrainer) -> str:
        kind = self.opened.model.config.model_type
        return qformer_card(self.config, kind, type(self.opened.model).__name__, trainer.state.log_history)


@contextmanager
def prepare(config: VlmConfig, failures: Failures, quiet: bool = False) -> Iterator[QFormerStage]:
    """Read and check the data, and open the model. Raises VlmkitError."""
    check(config)
    torch.manual_seed(config.seed)
    how: Any = {"images": config.images, "limit": config.limit, "failures": failures, "quiet": quiet}
    training, validation = split_data(partial(read_data, parse=parse_dialogues, **how), config.data, config.val)
    opened = open_qformer(str(config.start))
    opened.processor.tokenizer.pad_token = opened.processor.tokenizer.pad_token or opened.processor.tokenizer.eos_token
    encode = Encoder.of(opened, config.max_length)
    samples = usable(training, encode, failures, quiet)
    held_out = usable(validation, encode, failures, quiet) if validation else None
    if not quiet:
        show_data(training, validation, isinstance(config.val, float))
    epoch = partial(samples.epoch, config.seed)
    steps = config.steps or max(1, math.ceil(config.epochs * len(epoch(0)) / config.batch_size))
    refs = Order(epoch, steps * config.batch_size)
    yield QFormerStage(config, opened, samples, held_out, refs, steps, fingerprints(training, validation))


def check(config: VlmConfig) -> None:
    """Raise VlmkitError for the stage prefer, and for settings that these models have no use for."""
    if config.stage is Stage.PREFER:
        raise VlmkitError(f"{config.start} has a Q-Former, which prefer does not train", "use align or instruct")
    for each in fields(config):
        if each.name in WITHOUT_USE and getattr(config, each.name) != each.default:
            raise VlmkitError(f"--{name_of(each.name)} is not for a Q-Former", "leave it out")


def plan(config: VlmConfig, failures: Failures, quiet: bool) -> dict[str, Any]:
    """Of a run that is not begun: parameters, samples and steps."""
    with prepare(config, failures, quiet) as stage:
        parameters = [*QFormerLossModel(stage.opened.model, config).parameters()]
    return {
        "stage": config.stage,
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "total_parameters": sum(p.numel() for p in parameters),
        "samples": len(stage.training),
        "steps": stage.steps,
    }
