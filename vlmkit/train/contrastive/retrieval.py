"""How well pictures and captions find each other: recall both ways, and the alignment gap."""

import torch
from torch import Tensor

KS = (1, 5, 10)


def retrieval(images: Tensor, texts: Tensor, owner: Tensor) -> dict[str, float]:
    """Recall at 1, 5, 10 both ways and the gap, as fractions.

    `images` (N, D) and `texts` (M, D) are L2-normalised; caption j belongs to picture `owner[j]` (M,). A picture counts
    as found by the best of its captions (Karpathy and Fei-Fei, 2015). Ties count against the model. The gap is the mean
    cosine of pairs minus that of all other combinations.
    """
    scores = images.double() @ texts.double().T  # (N, M)
    pairs = owner[None, :] == torch.arange(len(images), device=owner.device)[:, None]  # (N, M)
    own = scores.T.gather(1, owner[:, None])  # (M, 1)
    text_rank = ((own <= scores.T) & ~pairs.T).sum(1)  # others no worse than the right picture
    best = scores.masked_fill(~pairs, -2).amax(1, keepdim=True)  # (N, 1)
    image_rank = ((best <= scores) & ~pairs).sum(1)
    found = {f"text_to_image_r{k}": (text_rank < k).double().mean().item() for k in KS}
    found |= {f"image_to_text_r{k}": (image_rank < k).double().mean().item() for k in KS}
    others = ~pairs
    gap = scores[pairs].mean() - (scores[others].mean() if others.any() else 0)
    return {name: round(value, 6) for name, value in found.items()} | {"gap": round(float(gap), 6)}
