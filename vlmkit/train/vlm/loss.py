"""The loss of packed rows: logits only where there is a label, the sum over these labels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, pad
from transformers import LlavaForConditionalGeneration

from vlmkit.models.llava.connectors import project, reads_text, tower_features
from vlmkit.train.checkpoints import LoadedStrictly

BLOCK_ENDS = ".o_proj", ".down_proj"  # the last layers of attention and MLP, in Llama, Qwen and most others


class PackedLossModel(LoadedStrictly):
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

    def _dropped(self, block: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        return dropout(out, self.drop, self.training)

    def forward(self, labels: Tensor, weights: Tensor, **inputs: Any) -> Tensor:
        """The sum of the losses of `labels` (S,) times `weights` (S,); `inputs` are those of `hidden`."""
        logits = self.model.lm_head(self.hidden(**inputs)).float()  # (S, V)
        smoothing = self.smoothing if self.training else 0.0
        loss = (cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing) * weights).sum()
        if inputs.get("pixel_values") is None:  # every process must have a gradient for the projector, or others wait
            loss = loss + 0 * sum(p.sum() for p in self.model.model.multi_modal_projector.parameters())
        return loss

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        branch_ids: Tensor,
        label_positions: Tensor,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        """(S, D): the language model's last hidden states at `label_positions` (see `PackedBatch`).

        `pixel_values` are P pictures (P, 3, H, W), or the vision tower's features of them (P, N, F).
        """
        inner = self.model.model
        embeds = self.model.get_input_embeddings()(input_ids)  # (R, L, D)
        is_image = input_ids == self.model.config.image_token_id
        if pixel_values is not None:
            features = tower_features(inner, pixel_values)  # (P, N, F)
            features = features.to(next(inner.multi_modal_projector.parameters()).dtype)
            features = dropout(features, self.drop, self.training)
            text, mask = None, None
            if reads_text(inner):
                text, mask = prompt_embeddings(embeds, is_image, segment_ids, label_positions, len(pixel_values))
            image = project(inner, features, text, mask).to(embeds.dtype)  # (P, Q, D)
            embeds = embeds.masked_scatter(is_image[..., None], image)
        out = inner.language_model(
            inputs_embeds=dropout(embeds, self.drop, self.training),
            attention_mask=packed_attention_mask(segment_ids, branch_ids)[:, None],
            position_ids=position_ids,
            use_cache=False,
        )
        return out.last_hidden_state.flatten(0, 1)[label_positions]


def packed_attention_mask(segment_ids: Tensor, branch_ids: Tensor) -> Tensor:
    """(R, L, L): which tokens each token attends to. Padding attends to itself: a softmax over nothing is NaN."""
    order = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    shared = (branch_ids[:, None, :] == 0) | (branch_ids[:, :, None] == branch_ids[:, None, :])
    filled = (segment_ids >= 0)[:, :, None] | (order[:, None] == order)
    return (same & shared & (order[:, None] >= order)) & filled


def prompt_embeddings(
    embeds: Tensor, is_image: Tensor, segment_ids: Tensor, label_positions: Tensor, pictures: int
) -> tuple[Tensor, Tensor]:
    """Each picture's prompt, (P, T, D) and its mask (P, T): its segment's text before the first label, padding zero.

    A connector that reads the prompt must not see the reply in training either. Segments hold one sample each.
    """
    rows, width = segment_ids.shape
    count = int(segment_ids.max()) + 1
    row = torch.arange(rows, device=segment_ids.device)[:, None]
    key = torch.where(segment_ids >= 0, row * count + segment_ids, -1).flatten()  # (RL,)
    end = torch.full((rows * count,), rows * width, device=segment_ids.device)
    end = end.scatter_reduce(0, key[label_positions], label_positions, "amin")  # where each prompt ends, inclusive
    flat = torch.arange(rows * width, device=segment_ids.device)
    in_prompt = (key >= 0) & ~is_image.flatten() & (flat <= end[key.clamp(min=0)])
    image_keys = key[is_image.flatten()]
    which = image_keys[:: len(image_keys) // pictures]  # (P,) the segment of each picture
    lists = [flat[in_prompt & (key == k)] for k in which]
    lists = [some if len(some) else flat[key == k][:1] for some, k in zip(lists, which, strict=True)]
    longest = max(map(len, lists))
    mask = torch.tensor([[i < len(some) for i in range(longest)] for some in lists], device=segment_ids.device)
    index = torch.stack([pad(some, (0, longest - len(some))) for some in lists])
    return embeds.flatten(0, 1)[index] * mask[..., None], mask
