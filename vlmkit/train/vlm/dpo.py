"""Prefer: direct preference optimisation (Rafailov and others, 2023), by TRL's DPOTrainer.

The model it starts from is the reference: with adapters the same weights with the adapters off, else a copy.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import constants
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.modeling_outputs import BaseModelOutputWithPooling
from trl import DPOConfig, DPOTrainer

from vlmkit.models.llava.connectors import project, reads_text
from vlmkit.models.llava.model import Vlm
from vlmkit.train.checkpoints import trained_parameters
from vlmkit.train.config import PreferConfig
from vlmkit.train.distributed import rank, world
from vlmkit.train.trainer import checked
from vlmkit.train.vlm.batches import ByLength
from vlmkit.train.vlm.collator import GroupDataset
from vlmkit.train.vlm.groups import Group
from vlmkit.train.vlm.lora import PROJECTOR, lora_config
from vlmkit.train.vlm.packing import Packer
from vlmkit.train.vlm.sft import VlmTrainer

constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL would report each run


class VisionDPOTrainer(VlmTrainer, DPOTrainer):
    """DPO over groups of two samples about the same pictures, the chosen one first."""

    def __init__(self, vlm: Vlm, packer: Packer, settings: dict[str, Any], **rest: Any) -> None:
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
            train_dataset=_described(rest["training"]),
            eval_dataset=_described(rest["validation"]) if rest["validation"] else None,
            data_collator=pairs(packer, reads_text(vlm.model.model)),
            peft_config=lora_config(vlm.model, config.lora, config.dropout) if config.lora else None,
            **rest,
        )

    @property
    def trained_model(self) -> nn.Module:
        """The model within the adapters."""
        model: Any = self.model
        return model.get_base_model() if self.config.lora else model

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of like lengths: pairs are padded to the longest."""
        groups: Any = self.training.groups
        refs = ByLength(self.refs, self.config.batch_size, groups)
        return self.loader(self.training, self.sampler(self.training, refs, rank(), world()))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All of the validation data, in order, shared out over the processes."""
        groups: Any = self.validation
        return self.accelerator.prepare(self.loader(groups, self.sampler(groups, groups.refs())))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, the mean over the pairs of `inputs`."""
        names, tokens = checked(inputs).pop("names"), inputs.pop("tokens")
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "pixel_values" not in inputs:  # as in `PackedLossModel`, for the other processes
            projector = (value for name, value in trained_parameters(self.trained_model).items() if PROJECTOR in name)
            loss = loss + 0 * sum(value.sum() for value in projector)
        if model.training:
            self.watch(loss, names, tokens=tokens, samples=len(names))
        return loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None in checkpoints."""


def _reference(vlm: Vlm) -> Any:
    """A frozen copy of the model, but for the vision tower, which both share: no stage trains it."""
    tower: Any = vlm.model.model.vision_tower
    return copy.deepcopy(vlm.model, {id(tower): tower}).requires_grad_(False)


def _take_features(model: Any) -> None:
    """From now on the `pixel_values` of `model` are features of its vision tower."""

    def image_features(pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        dtype = next(model.multi_modal_projector.parameters()).dtype
        image: Any = list(project(model, pixel_values.to(dtype)))  # one tensor a picture
        return BaseModelOutputWithPooling(pooler_output=image)

    model.get_image_features = image_features


def _described(groups: GroupDataset) -> Dataset:
    """What TRL looks at to see that the samples have pictures; it gets them from the loader."""
    some: Any = groups.groups
    pictures = [[str(picture) for picture in group.pictures] for group in some.without_samples()]
    return Dataset.from_dict({"images": pictures})


def pairs(packer: Packer, reads_text: bool) -> Callable[[list[tuple[Group, list[Tensor]]]], dict[str, Any]]:
    """A function that makes what TRL takes: all chosen samples, then all rejected ones, padded at their ends.

    Their tokens and masks are those of instruct. A connector that reads the text gets the prompt alone.
    """

    def collate(items: list[tuple[Group, list[Tensor]]]) -> dict[str, Any]:
        both = [packer.expand_image_tokens(group.samples[side]) for side in (0, 1) for group, _ in items]
        input_ids = _padded([sample.input_ids for sample in both], packer.pad)
        completion_mask = _padded([sample.loss_mask for sample in both], 0)
        attention_mask = _padded([np.ones(len(sample)) for sample in both], 0)
        batch: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        batch["completion_mask"] = completion_mask
        pixels = [tensor for _, tensors in items for tensor in tensors]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels * 2)
        if reads_text:
            batch["prompt_mask"] = attention_mask * (completion_mask.cumsum(1) == 0)
        return batch | {"names": tuple(group.name for group, _ in items), "tokens": int(attention_mask.sum())}

    return collate


def _padded(arrays: list[np.ndarray], fill: int) -> Tensor:
    """(B, T) int64."""
    rows = [torch.from_numpy(array.astype(np.int64)) for array in arrays]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
