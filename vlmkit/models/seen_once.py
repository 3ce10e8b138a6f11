"""What the vision tower says of pictures that several requests of a batch share, computed once for each."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

LISTS = "pooler_output", "deepstack_features"  # what language models take of it


def seen_once(
    model: Any, inputs: Any, pictures: Sequence["Image"], alone: Callable[["Image"], Mapping[str, Any]]
) -> dict[str, Any]:
    """`inputs` of `generate` with features in place of pixels, where at least every second picture is one seen before.

    `pictures` are those of `inputs` in order, and `alone` gives the inputs of one by itself. The features go where
    `generate` puts those that it computes (its `mm_encoder_outputs`).
    """
    keys = [(picture.size, picture.tobytes()) for picture in pictures]
    distinct = dict(zip(keys, pictures, strict=True))
    if not pictures or 2 * len(distinct) > len(keys):
        return dict(inputs)
    look = model.base_model.get_image_features
    taken = set(inspect.signature(look).parameters)
    seen = {}
    for key, picture in distinct.items():
        seen[key] = look(**{name: value for name, value in alone(picture).items() if name in taken}, return_dict=True)
    features = copy(seen[keys[0]])
    for name in LISTS:
        # Not as keys: LLaVA adds the first one to what the tower gave, which need not have a field of that name.
        if getattr(features, name, None) is not None:
            setattr(features, name, _joined([getattr(seen[key], name) for key in keys]))
    return {name: value for name, value in inputs.items() if name != "pixel_values"} | {
        "mm_encoder_outputs": {"image": features}
    }


def takes_features(model: Any) -> bool:
    """Whether `generate` takes features in place of pixels: older versions of transformers do not."""
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def _joined(parts: list[Any]) -> Any:
    """One of the `parts`, those of all: a tensor (tiles, tokens, width), tensors (tokens, width), or those by layer."""
    import torch

    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    if isinstance(parts[0][0], torch.Tensor):
        return [tile for part in parts for tile in part]
    return [_joined(list(layer)) for layer in zip(*parts, strict=True)]
