"""The loss of packed rows: logits only where there is a label, the sum over these labels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, linear, pad
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration

from vlmkit.models.llava.connectors import project, reads_text, tower_features
from vlmkit.train.checkpoints import LoadedStrictly
from vlmkit.train.cost import LABELS
from vlmkit.train.vlm.attention import BLOCK, packed_attention_mask, packed_block_mask, uses_flex

CHUNK = LABELS
BLOCK_ENDS = ".o_proj", ".down_proj"  # the last layers of attention and MLP, in Llama, Qwen and most others


class PackedLossModel(LoadedStrictly):
    """Wraps a model for training: its loss, with dropout and label smoothing that the model itself does not have.

    Dropout as in "Attention Is All You Need", 5.4: of the embeddings, and of what each block adds to its input.
    """

    accepts_loss_kwargs = True  # Trainer then leaves it to `compute_loss` to weigh micro-batches

    def __init__(
        self, model: LlavaForConditionalGeneration, drop: float = 0.0, smoothing: float = 0.0, cached: bool = False
    ) -> None:
        """`cached`: it gets features of pictures, and the vision tower does not run."""
        super().__init__()
        self.model, self.drop, self.smoothing, self.cached = model, drop, smoothing, cached
        self.vision: Any = model.config.vision_config
        for name, block in model.model.language_model.named_modules() if drop else ():
            if name.endswith(BLOCK_ENDS):
                block.register_forward_hook(self._dropped)

    def _dropped(self, block: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        return dropout(out, self.drop, self.training)

    def forward(self, labels: Tensor, weights: Tensor, **inputs: Any) -> Tensor:
        """The sum of the losses of `labels` (S,) times `weights` (S,); `inputs` are those of `hidden`."""
        hidden = self.hidden(**inputs)
        if len(labels) <= CHUNK:
            loss = self._loss(hidden, labels, weights)
        else:  # the logits of a chunk at a time, made again in the backward pass
            chunks = zip(hidden.split(CHUNK), labels.split(CHUNK), weights.split(CHUNK), strict=True)
            loss = torch.stack([checkpoint(self._loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()
        return loss

    def _loss(self, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        head: Any = self.model.lm_head
        logits = linear(hidden, head.weight, head.bias)  # (S, V)
        smoothing = self.smoothing if self.training else 0.0
        losses = cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)  # (S,)
        return (losses * weights).sum()

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        branch_ids: Tensor,
        label_positions: Tensor,
        pixel_values: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> Tensor:
        """(S, D): the language model's last hidden states at `label_positions` (see `PackedBatch`).

        `pixel_values` are pictures (U, 3, H, W), or the vision tower's features of them (U, N, F); the P that the image
        tokens stand for are those of the numbers `shown` (P,), or all in order.
        """
        inner = self.model.model
        embeds = self.model.get_input_embeddings()(input_ids)  # (R, L, D)
        is_image = input_ids == self.model.config.image_token_id
        if pixel_values is not None:
            features = tower_features(inner, pixel_values)  # (U, N, F)
            features = features if shown is None else features[shown]  # (P, N, F)
            features = features.to(next(inner.multi_modal_projector.parameters()).dtype)
            features = dropout(features, self.drop, self.training)
            text, mask = None, None
            if reads_text(inner):
                text, mask = prompt_embeddings(embeds, is_image, segment_ids, label_positions, len(features))
            image = project(inner, features, text, mask).to(embeds.dtype)  # (P, Q, D)
            embeds = embeds.masked_scatter(is_image[..., None], image)
        else:
            embeds = embeds + 0 * self._image_of_nothing(embeds).sum()
        embeds = dropout(embeds, self.drop, self.training)
        width = input_ids.shape[1]
        if uses_flex(inner.language_model):
            more = -width % BLOCK
            embeds = pad(embeds, (0, 0, 0, more))
            position_ids, branch_ids = pad(position_ids, (0, more)), pad(branch_ids, (0, more))
            attended: Any = packed_block_mask(pad(segment_ids, (0, more), value=-1), branch_ids)
        else:
            attended = packed_attention_mask(segment_ids, branch_ids)[:, None]
        out = inner.language_model(
            inputs_embeds=embeds, attention_mask=attended, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return out[:, :width].flatten(0, 1)[label_positions]

    def _image_of_nothing(self, embeds: Tensor) -> Tensor:
        """(1, Q, D): a blank picture through tower and projector.

        Other processes may have pictures: they gather and reduce each layer together, so all run all of them.
        """
        inner, vision = self.model.model, self.vision
        side = vision.image_size
        features = embeds.new_zeros(1, 1, vision.hidden_size)
        if not self.cached:
            features = tower_features(inner, embeds.new_zeros(1, 3, side, side))
        features = features.to(next(inner.multi_modal_projector.parameters()).dtype)
        first = embeds[:1, :1]
        return project(inner, features, first, torch.ones_like(first[..., 0], dtype=torch.bool)).to(embeds.dtype)


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
