"""A picture with its boxes and polygons drawn on it.

Where words looked, as one picture: a tile for each word, with what it looked at in bright colours.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.io.images import open_picture
from vlmkit.io.records import Failed, Record
from vlmkit.io.sources import is_url, open_source
from vlmkit.io.terminal import Output

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont


# Told apart by most people with a colour vision deficiency (Okabe and Ito, 2008).
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
TEXT_SHARE = 40  # the longer side over the height of a label
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_drawing(path: str) -> None:
    """Raise VlmkitError unless `path` names a picture by its suffix."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise VlmkitError(f"{path} is no name for a picture", f"end it in {', '.join(SUFFIXES)}")


def drawn(results: Iterable[Record | Failed], path: str) -> Iterator[Record | Failed]:
    """`results` as they are; the picture of the first record with its boxes is saved at `path`. Raises VlmkitError."""
    for result in results:
        if not isinstance(result, Failed):
            if not isinstance(result.get("image"), str) or is_url(result["image"]):
                raise VlmkitError("--draw of a picture that has no path here", "save it, then name it")
            image, _, _ = open_picture(open_source(result["image"]))
            save(draw(image, result["boxes"]), path)
        yield result


def save(image: "Image", path: str) -> None:
    """Write a picture in the format of its suffix, whole or not at all. Raises VlmkitError."""
    from PIL.Image import registered_extensions

    data = io.BytesIO()
    image.save(data, registered_extensions()[Path(path).suffix.lower()])
    with Output(path) as out:
        out.write(data.getvalue())


def draw(image: "Image", boxes: Sequence[dict[str, Any]]) -> "Image":
    """A copy of the RGB picture with each of `boxes` (`label`, `box`, perhaps `polygon`), one colour a label."""
    from PIL import ImageDraw, ImageFont

    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    size = max(12, max(image.size) // TEXT_SHARE)
    font: Any = ImageFont.load_default(size)
    labels = list(dict.fromkeys(found["label"] for found in boxes))
    for found in boxes:
        color = COLORS[labels.index(found["label"]) % len(COLORS)]
        if polygon := found.get("polygon"):
            pen.polygon(polygon, outline=color, width=max(2, size // 6))
        pen.rectangle(found["box"], outline=color, width=max(2, size // 6))
    for found in boxes:  # labels lie on top
        _label(pen, found, COLORS[labels.index(found["label"]) % len(COLORS)], font, image.size)
    return drawn


def _label(pen: "ImageDraw", found: dict[str, Any], color: str, font: "FreeTypeFont", within: tuple[int, int]) -> None:
    text = found["label"] + (f" {found['score']:.2f}" if "score" in found else "")
    if not text:
        return
    left, _, right, bottom = pen.textbbox((0, 0), text, font=font)
    x = max(0, min(found["box"][0], within[0] - right))
    y = found["box"][1] - bottom if found["box"][1] >= bottom else found["box"][1]
    pen.rectangle((x, y, x + right + left, y + bottom), fill=color)
    pen.text((x, y), text, fill="black", font=font)


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
    contact_sheet = Image.new("RGB", (columns * TILE, rows * (small.height + LINE)), "white")
    pen = ImageDraw.Draw(contact_sheet)
    font: Any = ImageFont.load_default(LINE * 2 // 3)
    for place, (word, tile) in enumerate(tiles):
        x, y = place % columns * TILE, place // columns * (small.height + LINE)
        contact_sheet.paste(tile, (x, y))
        pen.text((x + 4, y + small.height + 2), word, fill="black", font=font)
    return contact_sheet


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
