"""Prefer: direct preference optimisation (Rafailov and others, 2023), by TRL's DPOTrainer.

The model it starts from is the reference: with adapters the same weights with the adapters off, else a copy.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.modeling_outputs import BaseModelOutputWithPooling
from trl import DPOConfig, DPOTrainer

from vlmkit.models.llava.connectors import project, reads_text
from vlmkit.models.llava.model import Vlm
from vlmkit.train.config import PreferConfig
from vlmkit.train.trainer import trained
from vlmkit.train.vlm.collator import Feed, Group
from vlmkit.train.vlm.lora import PROJECTOR, adapters
from vlmkit.train.vlm.packing import Packer
from vlmkit.train.vlm.sft import Drawing
from vlmkit.train.vlm.tokenize import Sequence


class VisionDPOTrainer(Drawing, DPOTrainer):
    """DPO over groups of two sequences about the same pictures, the chosen one first."""

    def __init__(
        self, vlm: Vlm, feed: Feed, validation: Feed | None, packer: Packer, settings: dict[str, Any], **rest: Any
    ) -> None:
        config: PreferConfig = rest["config"]
        reference = None if config.lora else _reference(vlm)
        if config.cache_features:
            for model in filter(None, (vlm.model, reference)):
                _take_features(model.model)
        super().__init__(
            model=vlm.model,
            ref_model=reference,
            args=DPOConfig(**settings, beta=config.beta, max_length=None, gradient_checkpointing=False),
            processing_class=vlm.processor,
            train_dataset=_described(feed),
            eval_dataset=_described(validation) if validation else None,
            data_collator=pairs(packer, reads_text(vlm.model.model)),
            peft_config=adapters(vlm.model, config) if config.lora else None,
            feed=feed,
            **rest,
        )
        self.validation = validation

    @property
    def core(self) -> nn.Module:
        """The model within the adapters."""
        model: Any = self.model
        return model.get_base_model() if self.config.lora else model

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All of the validation data, in order."""
        assert self.validation is not None
        return self.accelerator.prepare(self.loader(self.validation, self.validation.all()))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, the mean over the pairs of `inputs`."""
        names, tokens = inputs.pop("names"), inputs.pop("tokens")
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "pixel_values" not in inputs:  # as in `Learner`, for the other processes
            loss = loss + 0 * sum(value.sum() for name, value in trained(self.core).items() if PROJECTOR in name)
        if model.training:
            self.watch(loss, names, tokens)
        return loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None in checkpoints."""

    def _send_telemetry(self) -> None:
        """Never."""


def _reference(vlm: Vlm) -> Any:
    """A frozen copy of the model, but for the vision tower, which both share: no stage trains it."""
    tower: Any = vlm.model.model.vision_tower
    return copy.deepcopy(vlm.model, {id(tower): tower}).requires_grad_(False)


def _take_features(model: Any) -> None:
    """From now on the `pixel_values` of `model` are what `Features` keeps."""

    def image_features(pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        dtype = next(model.multi_modal_projector.parameters()).dtype
        image: Any = list(project(model, pixel_values.to(dtype)))  # one tensor a picture
        return BaseModelOutputWithPooling(pooler_output=image)

    model.get_image_features = image_features


def _described(feed: Feed) -> Dataset:
    """What TRL looks at to see that the samples have pictures; it gets them from `feed`, through `pairs`."""
    return Dataset.from_dict({"images": [[str(picture) for picture in group.pictures] for group in feed.groups]})


def pairs(packer: Packer, reads_text: bool) -> Callable[[list[tuple[Group, list[Tensor]]]], dict[str, Any]]:
    """A function that makes what TRL takes: all chosen sequences, then all rejected ones, padded at their ends.

    Their tokens and masks are those of instruct. A connector that reads the text gets the prompt alone.
    """

    def collate(items: list[tuple[Group, list[Tensor]]]) -> dict[str, Any]:
        both = [packer.whole(group.sequences[side]) for side in (0, 1) for group, _ in items]
        ids, learned, within = (_padded(packer, both, part) for part in ("ids", "learned", "within"))
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": within, "completion_mask": learned}
        seen = [tensor for _, tensors in items for tensor in tensors]
        if seen:
            batch["pixel_values"] = torch.stack(seen * 2)
        if reads_text:
            batch["prompt_mask"] = within * (learned.cumsum(1) == 0)
        return batch | {"names": tuple(group.name for group, _ in items), "tokens": int(within.sum())}

    return collate


def _padded(packer: Packer, sequences: list[Sequence], part: str) -> Tensor:
    """(B, T) int64."""
    longest = max(len(sequence.ids) for sequence in sequences)
    rows = np.full((len(sequences), longest), packer.pad if part == "ids" else 0, np.int64)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence.ids)] = 1 if part == "within" else getattr(sequence, part)
    return torch.from_numpy(rows)
