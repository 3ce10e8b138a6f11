"""The training loop: symmetric InfoNCE over cached image features, AdamW, cosine rate with warm-up."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vlmkit.errors import VlmkitError

MAX_LOGIT_SCALE = math.log(100)  # CLIP (Radford and others, 2021), section 2.5


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of `images` (B, D) and C captions of each, `texts` (C, B, D), both L2-normalised.

    Each of the C sets is contrasted with the pictures by itself, so captions of one picture never compete.
    """
    logits = logit_scale * images @ texts.transpose(1, 2)  # (C, B pictures, B captions)
    target = torch.arange(len(images), device=images.device).expand(len(texts), -1)  # (C, B)
    both = cross_entropy(logits.transpose(1, 2), target) + cross_entropy(logits.transpose(1, 2).mT, target)
    return both / 2


def rate(step: int, steps: int, warmup: float) -> float:
    """The share of the peak rate at `step` (from 1) of `steps`: linear warm-up, then half a cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step <= rising:
        return step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def optimizer_for(model: nn.Module, lr: float, text_lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what is not locked: the text tower at its own rate, no decay for biases, norms and the scale."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((name.startswith("text.transformer."), decay), []).append(parameter)
    listed = [
        {"params": some, "lr": 0.0, "peak": text_lr if tower else lr, "tower": tower, "weight_decay": decay}
        for (tower, decay), some in groups.items()
    ]
    return torch.optim.AdamW(listed, betas=(0.9, 0.98), eps=1e-6)


class Loop:
    """One optimisation step at a time; `step` counts them from 1."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, logit_scale: nn.Parameter, steps: int, heads_alone: int, warmup: float
    ) -> None:
        self.optimizer, self.logit_scale, self.step = optimizer, logit_scale, 0
        self.steps, self.heads_alone, self.warmup = steps, heads_alone, warmup

    def update(self, images: Tensor, texts: Tensor, ids: list[str]) -> dict[str, float]:
        """One step on unnormalised `images` (B, D) and `texts` (C, B, D): its figures.

        Raises VlmkitError naming the pictures (`ids`) of the batch when the loss is not finite.
        """
        self.step += 1
        for group in self.optimizer.param_groups:
            start = self.heads_alone if group["tower"] else 0
            share = rate(self.step - start, self.steps - start, self.warmup) if self.step > start else 0.0
            group["lr"] = group["peak"] * share
        loss = contrastive_loss(normalize(images, dim=-1), normalize(texts, dim=-1), self.logit_scale.exp())
        if not math.isfinite(value := loss.item()):
            raise VlmkitError(f"the loss is {value} at step {self.step}, pictures {', '.join(ids)}", "try a lower rate")
        self.optimizer.zero_grad()
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=False).item()
        self.optimizer.step()
        with torch.no_grad():
            self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        rates = {"text_lr" if g["tower"] else "lr": g["lr"] for g in self.optimizer.param_groups}
        return (
            {"step": self.step, "loss": value}
            | rates
            | {"grad_norm": norm, "logit_scale": self.logit_scale.exp().item()}
        )
