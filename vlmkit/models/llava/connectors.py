"""Connectors: what takes image features to the language model, each a class here and a line in CONNECTORS.

A class is made with the widths F and D of both sides and takes image features (P, N, F) to the language model's width,
(P, Q, D). `tokens` is Q, None where it is N. One that `reads_text` also takes the prompt's embeddings (P, T, D) and a
mask (P, T) that is true at its tokens, of which every picture has at least one.

transformers' LLaVA has the connector mlp alone. **Not native**: checkpoints with another one open through vlmkit alone.
Packages add connectors by entry points of the group `vlmkit.connectors`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmkit.models.registry import CONNECTORS


class ConnectorConfig(LlavaConfig):
    """LLaVA's configuration with the name of the connector."""

    model_type = "vlmkit_llava"
    connector: str = "linear"


class Connector(nn.Module):
    """The defaults of a connector."""

    native = False  # whether transformers' LLaVA has it
    reads_text = False
    tokens: int | None = None


class Mlp(Connector):
    """LLaVA's own two layers, with the names of weights that `LlavaMultiModalProjector` has."""

    native = True

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, dim), nn.Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(gelu(self.linear_1(features)))


class Linear(Connector):
    """One matrix, as in the first LLaVA (Liu and others, 2023, section 4.1)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


class QFormer(Connector):
    """64 trained queries attend to the picture; their outputs take its place (BLIP-2, Li and others, 2023)."""

    tokens = 64  # a square, so that LlavaProcessor can count them as patches

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        size = max(64, min(768, width) // 64 * 64)
        config = Blip2QFormerConfig(
            hidden_size=size,
            num_hidden_layers=2,
            num_attention_heads=size // 64,
            intermediate_size=4 * size,
            encoder_hidden_size=width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.queries = nn.Parameter(torch.randn(1, self.tokens, size) * 0.02)
        self.qformer = Blip2QFormerModel(config)
        self.linear = nn.Linear(size, dim)

    def forward(self, features: Tensor) -> Tensor:
        queries = self.queries.expand(len(features), -1, -1)
        found = self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        return self.linear(found)  # (P, 64, D)


class CrossAttention(Connector):
    """LLaVA's two layers, then each image token adds what it finds in the question by attention over its tokens."""

    reads_text = True

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.mlp = Mlp(width, dim)
        self.norm_image, self.norm_text = nn.LayerNorm(dim), nn.LayerNorm(dim)
        heads = next(h for h in (8, 4, 2, 1) if dim % h == 0)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, features: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        image = self.mlp(features)
        text = self.norm_text(text)
        found, _ = self.attention(self.norm_image(image), text, text, key_padding_mask=~mask, need_weights=False)
        return image + found


class Adaptive(Connector):
    """A gate between picture and text: alpha = sigmoid(W [v; t]), alpha v + (1 - alpha) t, for each channel.

    v is an image token after LLaVA's two layers, t the mean of the question's token embeddings.
    """

    reads_text = True

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.mlp = Mlp(width, dim)
        self.gate = nn.Linear(2 * dim, dim)

    def forward(self, features: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        image = self.mlp(features)  # (P, N, D)
        weights = mask.to(text.dtype)[..., None]
        mean = ((text * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)).expand_as(image)
        alpha = torch.sigmoid(self.gate(torch.cat([image, mean], -1)))
        return alpha * image + (1 - alpha) * mean


class ConnectorModel(LlavaModel):
    """LLaVA without its head, another connector in the place of its projector."""

    config_class = ConnectorConfig

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__(config)
        parts: Any = config
        kind = CONNECTORS.load(config.connector)
        self.multi_modal_projector = kind(parts.vision_config.hidden_size, parts.text_config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        prompt_mask: Any = None,
        **rest: Any,
    ) -> Any:
        """As LLaVA's. A connector that reads the text gets the prompt without its image tokens.

        The prompt is all that `attention_mask` (B, T) leaves; where a reply is there already, as in training,
        `prompt_mask` (B, T) leaves it out.
        """
        if pixel_values is not None and self.multi_modal_projector.reads_text:
            prompt = attention_mask if prompt_mask is None else prompt_mask
            text, mask = self._text(input_ids, prompt, len(pixel_values))
            each: Any = list(project(self, tower_features(self, pixel_values), text, mask))  # one tensor a picture
            rest["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=each)}
            pixel_values = None
        return super().forward(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, **rest)

    def _text(self, ids: Tensor, prompt: Tensor | None, pictures: int) -> tuple[Tensor, Tensor]:
        is_image = ids == self.config.image_token_id
        within = torch.ones_like(is_image) if prompt is None else prompt.bool()  # (B, T)
        mask = within & ~is_image
        first = torch.arange(ids.shape[1], device=ids.device) == within.int().argmax(1, keepdim=True)
        mask |= first & ~mask.any(1, keepdim=True)  # a prompt of nothing but pictures
        per_row = is_image.sum(1) // (is_image.sum() // pictures)  # how many pictures each row has
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(per_row)
        return self.get_input_embeddings()(ids)[rows], mask[rows]


class ConnectorLlava(LlavaForConditionalGeneration):
    """`ConnectorModel` with the language model's head."""

    config_class = ConnectorConfig

    def __init__(self, config: ConnectorConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        text: Any = config.text_config
        self.model = ConnectorModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def _supports_mm_encoder_outputs(self) -> bool:
        """Whether `generate` may take the pictures through the connector by themselves."""
        return not reads_text(self.model)


def tower_features(model: LlavaModel, pixels: Tensor) -> Tensor:
    """What the vision tower of `model` gives its projector: (P, 3, H, W) -> (P, N, F), or that itself, from a cache."""
    if pixels.ndim == 3:
        return pixels
    layer, strategy = model.config.vision_feature_layer, model.config.vision_feature_select_strategy
    found = model.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
    chosen = [found[layer]] if isinstance(layer, int) else [found[each] for each in layer]
    return torch.cat([each[:, 1:] if strategy == "default" else each for each in chosen], -1)


def project(model: LlavaModel, features: Tensor, text: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Tower features (P, N, F) through the connector, LLaVA's own or one of these: image tokens (P, Q, D)."""
    projector = model.multi_modal_projector
    return projector(features, text, mask) if reads_text(model) else projector(features)


def reads_text(model: LlavaModel) -> bool:
    """Whether the connector of `model` takes the prompt too."""
    return getattr(model.multi_modal_projector, "reads_text", False)


AutoConfig.register(ConnectorConfig.model_type, ConnectorConfig)
AutoModelForImageTextToText.register(ConnectorConfig, ConnectorLlava)
