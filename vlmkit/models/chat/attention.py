# ruff: noqa: TID253 - imported by backends on PyTorch alone
"""Where in the picture each word of an answer looked: the attention of its tokens to those of the picture.

The mean over the heads of the later half of the layers, as they are, without rollout; a model attends to much that does
not make it say what it says (Jain and Wallace, 2019), so it is a hint, not a proof.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from vlmkit.models.types import RequestError


class AttentionMaps(NamedTuple):
    """The picture as the model saw it, and for each word how much it looked at each place: H x W, sums to 1."""

    picture: Image.Image
    words: list[tuple[str, np.ndarray]]


def looks(model: Any, processor: Any, picture: Image.Image, inputs: Any, answer: torch.Tensor) -> AttentionMaps:
    """`inputs` of one request about `picture`, `answer` its reply (1, T). Raises Unanswerable."""
    ids = torch.cat([inputs["input_ids"], answer], 1)
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    height, width = _grid(model, inputs, len(places))
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            made = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True, **rest)
    finally:
        model.set_attn_implementation(before)
    later = made.attentions[len(made.attentions) // 2 :]
    start = inputs["input_ids"].shape[1]
    # A token is chosen where the one before it stands: (T, places).
    paid = torch.stack([layer[0].float().mean(0)[start - 1 : -1][:, places] for layer in later]).mean(0)
    maps = paid.cpu().numpy().reshape(-1, height, width)
    found = []
    for word, tokens in _words(processor.tokenizer, answer[0].tolist()):
        seen = maps[tokens].mean(0)
        found.append((word, seen / max(seen.sum(), 1e-12)))
    whole = "image_grid_thw" in inputs  # scaled, not cut
    return AttentionMaps(picture if whole else _as_seen(processor, inputs), found)


def _grid(model: Any, inputs: Any, count: int) -> tuple[int, int]:
    """Rows and columns of the picture's tokens."""
    sizes = inputs.get("image_grid_thw")
    if sizes is not None and len(sizes) == 1:
        _, height, width = sizes[0].tolist()
        merged = model.config.vision_config.spatial_merge_size
        return height // merged, width // merged
    side = round(count**0.5)
    if sizes is not None or not count or side * side != count or "pixel_values" not in inputs:
        raise RequestError("the tokens of the picture are no grid over it, so where words look cannot be shown")
    return side, side


def _words(tokenizer: Any, tokens: list[int]) -> list[tuple[str, list[int]]]:
    """The words of a reply, each with the places of its tokens."""
    found: list[tuple[str, list[int]]] = []
    text = ""
    for place in range(len(tokens)):
        longer = tokenizer.decode(tokens[: place + 1], skip_special_tokens=True)
        piece, text = longer[len(text) :], longer
        if not found or piece[:1].isspace():
            found.append((piece, [place]))
        else:
            found[-1] = found[-1][0] + piece, [*found[-1][1], place]
    return [(word.strip(), places) for word, places in found if word.strip()]


def _as_seen(processor: Any, inputs: Any) -> Image.Image:
    """The picture that the tower got, cut and scaled, in its colours again."""
    pixels = inputs["pixel_values"]
    how = processor.image_processor
    if pixels.ndim != 4 or pixels.shape[0] != 1:
        raise RequestError("the model saw the picture in pieces, so where words look cannot be shown")
    mean, spread = (torch.tensor(values, device=pixels.device) for values in (how.image_mean, how.image_std))
    colors = pixels[0].float() * spread[:, None, None] + mean[:, None, None]
    return Image.fromarray((colors.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
