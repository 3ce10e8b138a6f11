"""How the language stages go through their data; and align and instruct, which average over a step's labels."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vlmkit.train.config import VlmConfig
from vlmkit.train.data.loader import loader_of as processes
from vlmkit.train.distributed import rank, world
from vlmkit.train.schedule import lowest_share, rate_share, schedule_of
from vlmkit.train.sharding import ShardedAdamW, units
from vlmkit.train.trainer import CheckpointedTrainer, checked, parameter_groups
from vlmkit.train.vlm.batches import Bounds, OrderedSampler, SampleRef
from vlmkit.train.vlm.collator import GroupDataset, parts_of
from vlmkit.train.vlm.lora import PROJECTOR, TOWER
from vlmkit.train.vlm.loss import PackedLossModel


def loader_of(
    config: VlmConfig, groups: GroupDataset, sampler: OrderedSampler, collate: Callable[[list[Any]], dict[str, Any]]
) -> DataLoader:
    """The batches that `sampler` names; on a GPU other processes read them, on a CPU where --workers asks for them."""
    on_gpu = config.device == "cuda"
    workers = config.loaders() if on_gpu or config.workers else 0
    return processes(
        groups, workers=workers, pin=on_gpu, batch_sampler=sampler, collate_fn=partial(groups.read_batch, collate)
    )


class VlmTrainer(CheckpointedTrainer):
    """Takes the groups of `training` in the order of `refs`, and validates on those of `validation`."""

    def __init__(
        self,
        *args: Any,
        training: GroupDataset,
        validation: GroupDataset | None,
        refs: Sequence[SampleRef],
        **rest: Any,
    ) -> None:
        self.training, self.validation, self.refs = training, validation, refs
        super().__init__(*args, validates=validation is not None, **rest)

    @property
    def epoch(self) -> int:
        return self.refs[max(self.state.global_step, 1) * self.config.batch_size - 1].epoch + 1

    def get_train_dataloader(self) -> DataLoader:
        """All groups of the run that this process takes, as one epoch."""
        return self.loader(self.training, self.sampler(self.training, self.refs, rank(), world()))

    def sampler(self, groups: GroupDataset, refs: Sequence[SampleRef], rank: int = 0, world: int = 1) -> OrderedSampler:
        """The micro-batches of a process."""
        return OrderedSampler(refs, self.args.per_device_train_batch_size, rank, world)

    def loader(self, groups: GroupDataset, sampler: OrderedSampler) -> DataLoader:
        """The batches that `sampler` names (see `loader_of`)."""
        return loader_of(self.config, groups, sampler, self.data_collator)

    def rates(self) -> dict[str, float]:
        """The rates of parameters by what their names contain; all others have that of --lr."""
        return {PROJECTOR: self.config.projector_lr, TOWER: self.config.vision_lr}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, with `rates`."""
        config: VlmConfig = self.config
        own = self.rates()
        groups = parameter_groups(
            model or self.model,
            lambda name: next((rate for part, rate in own.items() if part in name), config.lr),
            config.weight_decay,
        )
        groups.sort(key=lambda group: group["lr"] != config.lr)  # the first one's rate is logged
        kind = ShardedAdamW if units(self.model) else torch.optim.AdamW
        self.optimizer = kind(groups, betas=(0.9, config.beta2), fused=True)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """That of the configuration, for each rate down to the same lowest one."""
        config, steps = self.config, num_training_steps
        optimizer = optimizer or self.optimizer

        def share(group: dict[str, Any]) -> Callable[[int], float]:
            floor = lowest_share(group["lr"], config.min_lr)
            return lambda done: rate_share(done, steps, round(config.warmup * steps), config.schedule, floor)

        if self.lr_scheduler is None:
            self.lr_scheduler = schedule_of(optimizer, share)
            self._created_lr_scheduler = True
        return self.lr_scheduler


class SftTrainer(VlmTrainer):
    """Align and instruct: a `PackedLossModel` on packed rows."""

    model: PackedLossModel

    @property
    def trained_model(self) -> nn.Module:
        """The model within the `PackedLossModel`."""
        return self.model.model

    def __init__(self, *args: Any, **rest: Any) -> None:
        self.filled = [0, 0]  # tokens, and places for them in rows, since the last logged step
        super().__init__(*args, **rest)

    def sampler(self, groups: GroupDataset, refs: Sequence[SampleRef], rank: int = 0, world: int = 1) -> OrderedSampler:
        config: VlmConfig = self.config
        bounds = Bounds(config.max_tokens_per_batch, config.max_pictures_per_batch)
        all_groups: Any = groups.groups
        divide = partial(bounds.parts, groups=all_groups)
        return OrderedSampler(refs, self.args.per_device_train_batch_size, rank, world, divide)

    def loss_divisor(self, batches: list[Any], device: torch.device) -> Tensor:
        """The weights of all labels of a step, in all processes."""
        weights = (part["weights"] for batch in batches for part in parts_of(batch))
        own = sum(float(some.sum()) for some in weights)  # still in main memory
        return self.accelerator.gather(torch.full((), own, device=device)).sum()

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Each part by itself; gradients are exchanged with the last one."""
        *parts, last = map(self._on_device, parts_of(inputs))
        done = []
        for part in parts:
            with self.accelerator.no_sync(model):
                done.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack([*done, super().training_step(model, last, num_items_in_batch)]).sum()

    def _on_device(self, part: dict[str, Any]) -> dict[str, Any]:
        device = self.args.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in part.items()}

    def extra_metrics(self) -> dict[str, float]:
        """The share of useful tokens in the rows since the last logged step."""
        tokens, slots = self.filled
        self.filled = [0, 0]
        return {"packing": round(tokens / slots, 3)} if slots else {}

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Its share of the step's weighted mean over labels, times the processes, over which DDP averages."""
        names, tokens, slots = (inputs.pop(name) for name in ("names", "tokens", "slots"))
        self.filled = [self.filled[0] + tokens, self.filled[1] + slots]
        loss = model(**inputs)
        self.watch(loss, names, tokens=tokens, samples=len(names))
        return loss * self.accelerator.num_processes / num_items_in_batch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The mean loss over the labels of the validation data."""
        self.model_wrapped.eval()
        losses, count = [], 0
        for inputs in self._validation_batches():
            with torch.no_grad(), self.compute_loss_context_manager():
                losses.append(self.model_wrapped(**inputs))
            count += len(inputs["weights"])
        self.model_wrapped.train()
        metrics = {"eval_loss": float(torch.stack(losses).cpu().double().sum() / count)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _validation_batches(self) -> Iterator[dict[str, Any]]:
        if self.validation is None:
            return
        sampler = self.sampler(self.validation, self.validation.refs())
        batches = map(checked, self.loader(self.validation, sampler))
        for batch in chain.from_iterable(map(parts_of, batches)):
            tensors = {name: value.to(self.args.device) for name, value in batch.items() if isinstance(value, Tensor)}
            yield tensors | {"weights": torch.ones_like(tensors["weights"])}
