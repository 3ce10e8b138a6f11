"""Pictures scaled and normalised as open_clip does it (Resize, CenterCrop, ToTensor, Normalize), without PyTorch."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vlmkit.io.images import middle

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True)
class PictureSteps:
    """What becomes of a picture: `size` (height, width) in pixels, `mean` and `std` by channel of values in 0..1.

    With `squash` it is scaled to `size` whatever its proportions, else its short side, and the middle is cut out.
    """

    size: tuple[int, int]
    squash: bool
    bilinear: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_open_clip(cls, config: dict[str, Any]) -> "PictureSteps | None":
        """Those of a PreprocessCfg as a dictionary; None where it pads, or crops to another shape than a square."""
        height, width = size = _repeated(config["size"], 2)
        squash = config["resize_mode"] == "squash"
        if config["resize_mode"] == "longest" or not (squash or height == width):
            return None
        mean, std = (_repeated(config[name], 3) for name in ("mean", "std"))
        return cls(size, squash, config["interpolation"] == "bilinear", mean, std)

    @cached_property
    def _values(self) -> "np.ndarray":
        """3 x 256: what becomes of each level of each channel, the numbers of torchvision to the last bit."""
        import numpy as np

        mean, std = (np.array(values, np.float32)[:, None] for values in (self.mean, self.std))
        return (np.arange(256, dtype=np.float32) / np.float32(255) - mean) / std

    def __call__(self, image: "Image") -> "np.ndarray":
        """An RGB picture -> (3, H, W) float32."""
        import numpy as np

        pixels = np.asarray(self._scaled(image))
        return np.stack([values[pixels[..., channel]] for channel, values in enumerate(self._values)])

    def _scaled(self, image: "Image") -> "Image":
        from PIL.Image import Resampling

        filter = Resampling.BILINEAR if self.bilinear else Resampling.BICUBIC
        height, width = self.size
        if self.squash:
            return image if image.size == (width, height) else image.resize((width, height), filter)
        image = middle(image)
        short = min(image.size)
        width_scaled, height_scaled = (height if side == short else int(height * side / short) for side in image.size)
        scaled = (width_scaled, height_scaled)
        if image.size != scaled:
            image = image.resize(scaled, filter)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


def _repeated(value: Any, count: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * count
