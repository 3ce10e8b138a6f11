"""The loss of packed rows: logits only where a token is learned, the sum over these tokens."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from transformers import LlavaForConditionalGeneration

from vlmkit.models.llava.connectors import project, reads_text, tower_features

BLOCK_ENDS = ".o_proj", ".down_proj"  # the last layers of attention and MLP, in Llama, Qwen and most others


class Learner(nn.Module):
    """Wraps a model for training: its loss, with dropout and label smoothing that the model itself does not have.

    Dropout as in "Attention Is All You Need", 5.4: of the embeddings, and of what each block adds to its input.
    """

    accepts_loss_kwargs = True  # Trainer then leaves it to `compute_loss` to weigh micro-batches

    def __init__(self, model: LlavaForConditionalGeneration, drop: float = 0.0, smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.drop, self.smoothing = model, drop, smoothing
        for name, block in model.model.language_model.named_modules() if drop else ():
            if name.endswith(BLOCK_ENDS):
                block.register_forward_hook(self._dropped)

    def _dropped(self, block: nn.Module, given: Any, out: Tensor) -> Tensor:
        return dropout(out, self.drop, self.training)

    def forward(
        self,
        ids: Tensor,
        position: Tensor,
        unit: Tensor,
        branch: Tensor,
        places: Tensor,
        labels: Tensor,
        weights: Tensor,
        seen: Tensor | None = None,
    ) -> Tensor:
        """The sum of the S learned tokens' losses times `weights` (S,)."""
        hidden = self.hidden(ids, position, unit, branch, places, seen)  # (S, D)
        logits = self.model.lm_head(hidden).float()
        smoothing = self.smoothing if self.training else 0.0
        loss = (cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing) * weights).sum()
        if seen is None:  # every process must have a gradient for the projector, or the others wait for it
            loss = loss + 0 * sum(p.sum() for p in self.model.model.multi_modal_projector.parameters())
        return loss

    def hidden(
        self, ids: Tensor, position: Tensor, unit: Tensor, branch: Tensor, places: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """(S, D): what the language model says at `places`."""
        inner = self.model.model
        embeds = self.model.get_input_embeddings()(ids)  # (R, L, D)
        is_image = ids == self.model.config.image_token_id
        if seen is not None:
            features = tower_features(inner, seen)  # (P, N, F)
            features = features.to(next(inner.multi_modal_projector.parameters()).dtype)
            features = dropout(features, self.drop, self.training)
            text, mask = None, None
            if reads_text(inner):
                text, mask = questions(embeds, is_image, unit, places, len(seen))
            image = project(inner, features, text, mask).to(embeds.dtype)  # (P, Q, D)
            embeds = embeds.masked_scatter(is_image[..., None], image)
        embeds = dropout(embeds, self.drop, self.training)
        out = inner.language_model(
            inputs_embeds=embeds, attention_mask=sees(unit, branch)[:, None], position_ids=position, use_cache=False
        )
        return out.last_hidden_state.flatten(0, 1)[places]


def sees(unit: Tensor, branch: Tensor) -> Tensor:
    """(R, L, L): which tokens each token attends to. Padding sees itself: a softmax over nothing is not a number."""
    order = torch.arange(unit.shape[1], device=unit.device)
    same = unit[:, :, None] == unit[:, None, :]
    shared = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (same & shared & (order[:, None] >= order)) & ((unit >= 0)[:, :, None] | (order[:, None] == order))


def questions(embeds: Tensor, is_image: Tensor, unit: Tensor, places: Tensor, pictures: int) -> tuple[Tensor, Tensor]:
    """Each picture's question, (P, T, D) and (P, T): its unit's text before the first learned token, padding zero.

    At run time it is the prompt; a connector must not see the reply in training either. Units hold one sequence each.
    """
    rows, width = unit.shape
    count = int(unit.max()) + 1
    key = torch.where(unit >= 0, torch.arange(rows, device=unit.device)[:, None] * count + unit, -1).flatten()  # (RL,)
    end = torch.full((rows * count,), rows * width, device=unit.device)
    end = end.scatter_reduce(0, key[places], places, "amin")  # where each unit's prompt ends, inclusive
    flat = torch.arange(rows * width, device=unit.device)
    asked = (key >= 0) & ~is_image.flatten() & (flat <= end[key.clamp(min=0)])
    image_keys = key[is_image.flatten()]
    per_picture = len(image_keys) // pictures
    which = image_keys[::per_picture]  # (P,) the unit of each picture
    lists = [flat[asked & (key == k)] for k in which]
    lists = [some if len(some) else flat[key == k][:1] for some, k in zip(lists, which, strict=True)]
    longest = max(map(len, lists))
    mask = torch.tensor([[i < len(some) for i in range(longest)] for some in lists], device=unit.device)
    index = torch.stack([torch.nn.functional.pad(some, (0, longest - len(some))) for some in lists])
    return embeds.flatten(0, 1)[index] * mask[..., None], mask
