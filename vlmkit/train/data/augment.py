"""Augmentations: other views of the same picture, against overfitting."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def view_of(picture: Image.Image, view: int, key: Sequence[int], size: int, mirror: bool = True) -> Image.Image:
    """View 0 is the picture, view 1 its mirror image, each further one a random crop seeded by `key`.

    Half of the crops are mirrored. Without `mirror` nothing is mirrored, and view 1 is a crop.
    """
    if view == 1 and mirror:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view > 0:
        rng = np.random.default_rng([*key, view])
        area, ratio = rng.uniform(0.5, 1.0), np.exp(rng.uniform(-0.25, 0.25))
        width = min(1.0, float(np.sqrt(area * ratio))) * picture.width
        height = min(1.0, float(np.sqrt(area / ratio))) * picture.height
        left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
        box = (left, top, left + width, top + height)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
        if mirror and rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture
