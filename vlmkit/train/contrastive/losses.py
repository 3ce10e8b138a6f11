"""The two losses of dual encoders, over all pairs of a batch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

MAX_LOGIT_SCALE = math.log(100)  # CLIP (Radford and others, 2021), section 2.5
STARTS = {"infonce": (math.log(1 / 0.07), None), "siglip": (math.log(10), -10.0)}  # log scale and bias, as published


def infonce(images: Tensor, texts: Tensor, logit_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of `images` (B, D) and C captions of each, `texts` (C, B, D), both L2-normalised.

    Each of the C sets is contrasted with the pictures by itself, so captions of one picture never compete (Radford and
    others, 2021). A bias would not change it.
    """
    logits = logit_scale * images @ texts.transpose(1, 2)  # (C, B pictures, B captions)
    target = torch.arange(len(images), device=images.device).expand(len(texts), -1)  # (C, B)
    both = cross_entropy(logits.transpose(1, 2), target) + cross_entropy(logits.transpose(1, 2).mT, target)
    return both / 2


def siglip(images: Tensor, texts: Tensor, logit_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Sigmoid loss of the same: each pair is judged by itself, summed over captions, averaged over pictures and sets.

    Zhai and others, 2023, algorithm 1.
    """
    logits = logit_scale * images @ texts.transpose(1, 2)  # (C, B, B)
    logits = logits if bias is None else logits + bias
    signs = 2 * torch.eye(len(images), device=images.device) - 1
    return -logsigmoid(signs * logits).sum(-1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {"infonce": infonce, "siglip": siglip}


class Objective(nn.Module):
    """A loss of unnormalised vectors, with the learned scale and bias of `model`, which it gives where they lack."""

    def __init__(self, model: nn.Module, loss: str, fresh: bool = False) -> None:
        super().__init__()
        self.loss = LOSSES[loss]
        self.scale: nn.Parameter = model.logit_scale  # type: ignore[assignment]
        bias: nn.Parameter | None = getattr(model, "logit_bias", None)
        if loss == "siglip" and bias is None:
            bias = model.logit_bias = nn.Parameter(torch.zeros_like(self.scale))
            fresh = True  # a scale that was learned without a bias is far too high
        if loss == "infonce" and bias is not None:
            bias.requires_grad_(False)
        self.bias = bias if loss == "siglip" else None
        with torch.no_grad():
            scale, start = STARTS[loss]
            if fresh:
                self.scale.fill_(scale)
            if fresh and self.bias is not None and start is not None:
                self.bias.fill_(start)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Of (B, D) and (C, B, D)."""
        return self.loss(normalize(images, dim=-1), normalize(texts, dim=-1), self.scale.exp(), self.bias)

    def clamp(self) -> None:
        with torch.no_grad():
            self.scale.clamp_(0, MAX_LOGIT_SCALE)

    def figures(self) -> dict[str, float]:
        bias = {} if self.bias is None else {"logit_bias": self.bias.item()}
        return {"logit_scale": self.scale.exp().item()} | bias
