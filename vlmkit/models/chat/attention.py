# ruff: noqa: TID253 - imported by backends on PyTorch alone
"""Attention maps: where in the picture each word of an answer attends to.

The mean over the heads of the later half of the layers, without rollout. A model attends to much that does
not influence its answer (Jain and Wallace, 2019), so a map is a hint, not a proof.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from vlmkit.models.types import RequestError


class AttentionMaps(NamedTuple):
    """The picture as the model saw it, and for each word its attention to each place: H x W, sums to 1."""

    picture: Image.Image
    words: list[tuple[str, np.ndarray]]


def attention_maps(
    model: Any, processor: Any, picture: Image.Image, inputs: Any, answer: torch.Tensor
) -> AttentionMaps:
    """`inputs` of one request about `picture`, `answer` its reply (1, T). Raises RequestError."""
    ids = torch.cat([inputs["input_ids"], answer], 1)
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    height, width = _grid(model, inputs, len(places))
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    for name, value in rest.items():
        if isinstance(value, torch.Tensor) and value.shape == inputs["input_ids"].shape:  # kinds of tokens: 0 is text
            rest[name] = torch.cat([value, torch.zeros_like(answer, dtype=value.dtype)], 1)
    implementation = model.config._attn_implementation  # no public name in transformers 4.57 to 5.24
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True, **rest)
    finally:
        model.set_attn_implementation(implementation)
    later = output.attentions[len(output.attentions) // 2 :]
    start = inputs["input_ids"].shape[1]
    # A token is chosen at the position before its own: (T, places).
    paid = torch.stack([layer[0].float().mean(0)[start - 1 : -1][:, places] for layer in later]).mean(0)
    maps = paid.cpu().numpy().reshape(-1, height, width)
    words = [(word, maps[tokens].mean(0)) for word, tokens in _words(processor.tokenizer, answer[0].tolist())]
    scaled = "image_grid_thw" in inputs  # not cropped
    shown = picture if scaled else _seen_picture(processor, inputs)
    return AttentionMaps(shown, [(word, found / max(found.sum(), 1e-12)) for word, found in words])


def _grid(model: Any, inputs: Any, count: int) -> tuple[int, int]:
    """Rows and columns of the picture's tokens."""
    sizes = inputs.get("image_grid_thw")
    if sizes is not None and len(sizes) == 1:
        _, height, width = sizes[0].tolist()
        merged = model.config.vision_config.spatial_merge_size
        return height // merged, width // merged
    side = round(count**0.5)
    if sizes is not None or not count or side * side != count or "pixel_values" not in inputs:
        raise RequestError("attention maps are not available: the image tokens do not form a grid")
    return side, side


def _words(tokenizer: Any, tokens: list[int]) -> list[tuple[str, list[int]]]:
    """The words of a reply, each with the positions of its tokens."""
    words: list[tuple[str, list[int]]] = []
    text = ""
    for position in range(len(tokens)):
        longer = tokenizer.decode(tokens[: position + 1], skip_special_tokens=True)
        piece, text = longer[len(text) :], longer
        if not words or piece[:1].isspace():
            words.append((piece, [position]))
        else:
            words[-1] = words[-1][0] + piece, [*words[-1][1], position]
    return [(word.strip(), positions) for word, positions in words if word.strip()]


def _seen_picture(processor: Any, inputs: Any) -> Image.Image:
    """The picture as the tower got it, cropped and scaled, with its normalisation undone."""
    pixels = inputs["pixel_values"]
    how = processor.image_processor
    if pixels.ndim != 4 or pixels.shape[0] != 1:
        raise RequestError("attention maps are not available: the model splits the picture into tiles")
    mean, deviation = (torch.tensor(values, device=pixels.device) for values in (how.image_mean, how.image_std))
    colors = pixels[0].float() * deviation[:, None, None] + mean[:, None, None]
    return Image.fromarray((colors.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
