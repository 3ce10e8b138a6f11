"""The losses of dual encoders, open_clip's, over all pairs of a batch."""

import math

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

MAX_LOGIT_SCALE = math.log(100)  # CLIP (Radford and others, 2021), section 2.5
LOSSES = {"infonce": ClipLoss, "siglip": SigLipLoss}
STARTS = {"infonce": (math.log(1 / 0.07), None), "siglip": (math.log(10), -10.0)}  # log scale and bias, as published


class Objective(nn.Module):
    """A loss of unnormalised vectors, with the learned scale and bias of `model`, which gets what it lacks of them."""

    def __init__(self, model: nn.Module, loss: str, from_scratch: bool = False) -> None:
        """`from_scratch`: the scale of `model` was not learned yet."""
        super().__init__()
        self.loss = LOSSES[loss]()
        self.scale: nn.Parameter = model.logit_scale  # type: ignore[assignment]
        bias: nn.Parameter | None = getattr(model, "logit_bias", None)
        if loss == "siglip" and bias is None:
            bias = model.logit_bias = nn.Parameter(torch.zeros_like(self.scale))
            from_scratch = True  # a scale that was learned without a bias is far too high
        if loss == "infonce" and bias is not None:
            bias.requires_grad_(False)  # it would change nothing
        self.bias = bias if loss == "siglip" else None
        with torch.no_grad():
            scale, start = STARTS[loss]
            if from_scratch:
                self.scale.fill_(scale)
            if from_scratch and self.bias is not None and start is not None:
                self.bias.fill_(start)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """The mean loss of `images` (B, D) against each of the C sets of captions `texts` (C, B, D).

        Each set is contrasted with the pictures by itself, so captions of one picture never compete.
        """
        images, texts, scale = normalize(images, dim=-1), normalize(texts, dim=-1), self.scale.exp()
        return torch.stack([self.loss(images, captions, scale, self.bias) for captions in texts]).mean()

    def share(self, images: Tensor, texts: Tensor, rows: slice) -> Tensor:
        """What `rows` of the pictures, and of the captions, are of `forward`: with the logits of these rows alone."""
        images, texts, scale = normalize(images, dim=-1), normalize(texts, dim=-1), self.scale.exp()
        number = len(images)
        labels = torch.arange(number, device=images.device)[rows]
        total = images.new_zeros(())
        for captions in texts:
            logits = scale * images[rows] @ captions.T  # (r, B)
            if self.bias is not None:
                pairs = torch.full_like(logits, -1).scatter_(1, labels[:, None], 1)
                total = total - logsigmoid(pairs * (logits + self.bias)).sum()
                continue
            back = scale * captions[rows] @ images.T
            total = total + sum(cross_entropy(each, labels, reduction="sum") for each in (logits, back)) / 2
        return total / (number * len(texts))

    def clamp(self) -> None:
        with torch.no_grad():
            self.scale.clamp_(0, MAX_LOGIT_SCALE)

    def metrics(self) -> dict[str, float]:
        bias = {} if self.bias is None else {"logit_bias": self.bias.item()}
        return {"logit_scale": self.scale.exp().item()} | bias
