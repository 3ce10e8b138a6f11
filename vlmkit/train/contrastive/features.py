"""The locked image tower runs once over every picture; training then reads its features from memory."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from vlmkit.images import ahead
from vlmkit.records import batched
from vlmkit.train.contrastive.data import open_sample
from vlmkit.train.rows import Captioned
from vlmkit.train.views import view_of

CHUNK = 8  # pictures at once: what stays in the caches of a CPU


def image_features(
    trunk: nn.Module,
    preprocess: Callable[[Image.Image], Tensor],
    samples: Sequence[Captioned],
    *,
    size: int,
    views: int = 1,
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
) -> Tensor:
    """Features (views, N, F) float32 of `samples`, in order, on `device`. Raises VlmkitError for a bad picture."""

    def pictures(item: tuple[int, Captioned]) -> Tensor:
        number, sample = item
        picture = open_sample(sample, size)
        make = partial(view_of, picture, key=(seed, number), size=size)
        return torch.stack([preprocess(make(view)) for view in range(views)])  # (views, 3, size, size)

    def features() -> Iterator[Tensor]:
        decoded = ahead(enumerate(samples), pictures, workers, depth=4 * CHUNK)
        for some in batched(decoded, max(1, CHUNK // views)):
            x = torch.stack(some).flatten(0, 1).to(device, memory_format=torch.channels_last)
            yield trunk(x).float().unflatten(0, (len(some), views))  # (n, views, F)

    trunk.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = torch.cat(list(features())).transpose(0, 1).contiguous()
    return found.clone()  # outside of inference mode, so that autograd may save it
