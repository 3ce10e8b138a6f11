"""Where words looked, as one picture: a tile for each word, with what it looked at in bright colours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

TILE = 240  # pixels
COLUMNS = 4
LINE = 24
SHARE = 0.55  # of the colours over the picture


def overlay(picture: "Image", words: "Sequence[tuple[str, np.ndarray]]") -> "Image":
    """A sheet of tiles, first the picture itself, then one for each of `words` with its map (H x W)."""
    from PIL import Image, ImageDraw, ImageFont

    small = picture.resize((TILE, max(1, round(TILE * picture.height / picture.width))), Image.Resampling.BICUBIC)
    tiles = [("", small), *((word, _colored(small, seen)) for word, seen in words)]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (small.height + LINE)), "white")
    pen = ImageDraw.Draw(sheet)
    font: Any = ImageFont.load_default(LINE * 2 // 3)
    for place, (word, tile) in enumerate(tiles):
        x, y = place % columns * TILE, place // columns * (small.height + LINE)
        sheet.paste(tile, (x, y))
        pen.text((x + 4, y + small.height + 2), word, fill="black", font=font)
    return sheet


def _colored(picture: "Image", seen: "np.ndarray") -> "Image":
    """`picture` under the colours of `seen`, the brightest where it is largest."""
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image

    spread = float(np.ptp(seen)) or 1.0
    levels = Image.fromarray(np.uint8(255 * (seen - seen.min()) / spread)).resize(
        picture.size, Image.Resampling.BICUBIC
    )
    colors = np.uint8(255 * colormaps["inferno"](np.asarray(levels))[..., :3])
    return Image.blend(picture, Image.fromarray(colors), SHARE)
