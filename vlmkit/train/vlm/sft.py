"""How the stages go through their data; and align and instruct, which average over a step's learned tokens."""

from collections.abc import Callable
from collections.abc import Sequence as Several
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vlmkit.errors import VlmkitError
from vlmkit.train.config import VlmConfig
from vlmkit.train.distributed import world
from vlmkit.train.trainer import CheckpointedTrainer, trained
from vlmkit.train.vlm.collator import Draw, Feed
from vlmkit.train.vlm.lora import PROJECTOR
from vlmkit.train.vlm.loss import Learner


class Drawing(CheckpointedTrainer):
    """Takes `draws` in their order, the same for any number of processes and micro-batches."""

    def __init__(self, *args: Any, config: VlmConfig, feed: Feed, draws: Several[Draw], **rest: Any) -> None:
        self.config, self.feed, self.draws = config, feed, draws
        super().__init__(*args, **rest)

    @property
    def epoch(self) -> int:
        """That of the last draw; to `Trainer` all draws are one epoch."""
        return self.draws[max(self.state.global_step, 1) * self.config.batch_size - 1].epoch + 1

    def get_train_dataloader(self) -> DataLoader:
        """All draws of the run, as one epoch."""
        return self.accelerator.prepare(self.loader(self.feed, self.draws))

    def loader(self, feed: Feed, draws: Several[Draw]) -> DataLoader:
        """The groups that `draws` name, in batches."""
        on_gpu = self.args.device.type == "cuda"
        workers = self.config.workers if on_gpu else 0
        return DataLoader(
            _Draws(),
            self.args.per_device_train_batch_size,
            sampler=draws,
            collate_fn=partial(read, feed, self.data_collator),
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,  # what Python 3.14 takes instead would pickle `feed`
            pin_memory=on_gpu,
        )

    def _prepare_inputs(self, inputs: Any) -> Any:
        return super()._prepare_inputs(whole(inputs))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW: the projector at its own rate, no decay for biases and norms."""
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in trained(model or self.model).items():
            rate = self.config.projector_lr if PROJECTOR in name else self.config.lr
            decay = self.config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        listed = [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in groups.items()]
        listed.sort(key=lambda group: group["lr"] != self.config.lr)  # the first one's rate is logged
        fused = self.args.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(listed, betas=(0.9, self.config.beta2), fused=fused)
        return self.optimizer


class VlmTrainer(Drawing):
    """Align and instruct: a `Learner` on packed rows."""

    model: Learner

    @property
    def core(self) -> nn.Module:
        """The model within the `Learner`."""
        return self.model.model

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        weights = (float(whole(batch)["weights"].sum()) for batch in batch_samples)
        count = torch.tensor(sum(weights), device=device)
        return self.accelerator.gather(count).sum()

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Its share of the step's weighted mean over learned tokens, times the processes, over which DDP averages."""
        names, tokens = inputs.pop("names"), inputs.pop("tokens")
        loss = model(**inputs)
        self.watch(loss, names, tokens)
        return loss * self.accelerator.num_processes / num_items_in_batch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over the learned tokens of the validation data."""
        self.model_wrapped.eval()
        total, count = torch.zeros(2, dtype=torch.float64)
        feed: Any = self.eval_dataset
        for batch in self.loader(feed, feed.all()):
            inputs = self._prepare_inputs(batch)
            inputs.pop("names"), inputs.pop("tokens")
            inputs["weights"] = torch.ones_like(inputs["weights"])
            with torch.no_grad(), self.compute_loss_context_manager():
                total += self.model_wrapped(**inputs).double().cpu()
            count += len(inputs["labels"])
        self.model_wrapped.train()
        metrics = {"eval_loss": float(total / count)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Draws(Dataset[Draw]):
    """Each draw by itself: what it names is read with the rest of its batch."""

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


def read(feed: Feed, collate: Callable[[list[Any]], dict[str, Any]], draws: list[Draw]) -> dict[str, Any]:
    """The batch of `draws`, or the error that it met: torch hands on those of loader processes as text alone."""
    try:
        return collate([feed[draw] for draw in draws])
    except VlmkitError as error:
        return {"error": error}


def whole(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, if it could be read. Raises VlmkitError."""
    if "error" in batch:
        raise batch["error"]
    return batch


def arguments(config: VlmConfig, out: str, steps: int, validates: bool) -> dict[str, Any]:
    """`config` in the terms of transformers' TrainingArguments."""
    save = config.save_steps or max(1, -(-steps // 10))
    return {
        "output_dir": out,
        "per_device_train_batch_size": config.batch_size // (config.accumulate * world()),
        "gradient_accumulation_steps": config.accumulate,
        "num_train_epochs": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(config.warmup * steps),
        "max_grad_norm": config.clip,
        "logging_steps": config.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_steps": save,
        "eval_strategy": "steps" if validates else "no",
        "eval_steps": save,
        "metric_for_best_model": "loss" if validates else None,
        "greater_is_better": False if validates else None,
        "load_best_model_at_end": False,
        "report_to": "none",
        "seed": config.seed,
        "use_cpu": config.device == "cpu",
        "bf16": config.device == "cuda",
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
        "ddp_find_unused_parameters": False,
        "fsdp": "full_shard" if config.fsdp else None,
        "fsdp_config": {"version": 2} if config.fsdp else None,
        "remove_unused_columns": False,
        "average_tokens_across_devices": False,
    }
