"""Pictures with boxes and polygons drawn on them, and attention maps as one picture of tiles."""

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

# Most people with a colour vision deficiency can distinguish them (Okabe and Ito, 2008).
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
TEXT_SHARE = 40  # the longer side over the height of a label
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

TILE = 240  # pixels
TILES_A_ROW = 4
LINE = 24
COLOR_SHARE = 0.55  # of the colours over the picture


def check_drawing(path: str) -> None:
    """Raise VlmkitError unless `path` names a picture by its suffix."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise VlmkitError(f"{path} does not name a picture", f"end it in {', '.join(SUFFIXES)}")


def save_drawing(results: Iterable[Record | Failed], path: str) -> Iterator[Record | Failed]:
    """`results` as they are; the picture of each record with its boxes is saved at `path`. Raises VlmkitError."""
    for result in results:
        if not isinstance(result, Failed):
            if not isinstance(result.get("image"), str) or is_url(result["image"]):
                raise VlmkitError("--draw needs a picture that is a file", "save the picture, then name it")
            image, _, _ = open_picture(open_source(result["image"]))
            save(draw_boxes(image, result["boxes"]), path)
        yield result


def save(image: "Image", path: str) -> None:
    """Write a picture in the format of its suffix, completely or not at all. Raises VlmkitError."""
    from PIL.Image import registered_extensions

    data = io.BytesIO()
    image.save(data, registered_extensions()[Path(path).suffix.lower()])
    with Output(path) as out:
        out.write(data.getvalue())


def draw_boxes(image: "Image", boxes: Sequence[dict[str, Any]]) -> "Image":
    """A copy of the RGB picture with each of `boxes` (`label`, `box`, perhaps `polygon`), one colour a label."""
    from PIL import ImageDraw, ImageFont

    copy = image.copy()
    pen = ImageDraw.Draw(copy)
    size = max(12, max(image.size) // TEXT_SHARE)
    font: Any = ImageFont.load_default(size)
    labels = list(dict.fromkeys(box["label"] for box in boxes))
    colors = {label: COLORS[i % len(COLORS)] for i, label in enumerate(labels)}
    for box in boxes:
        if polygon := box.get("polygon"):
            pen.polygon(polygon, outline=colors[box["label"]], width=max(2, size // 6))
        pen.rectangle(box["box"], outline=colors[box["label"]], width=max(2, size // 6))
    for box in boxes:  # labels are drawn over all boxes
        text = box["label"] + (f" {box['score']:.2f}" if "score" in box else "")
        if text:
            left, _, right, bottom = pen.textbbox((0, 0), text, font=font)
            x = max(0, min(box["box"][0], image.width - right))
            y = box["box"][1] - bottom if box["box"][1] >= bottom else box["box"][1]
            pen.rectangle((x, y, x + right + left, y + bottom), fill=colors[box["label"]])
            pen.text((x, y), text, fill="black", font=font)
    return copy


def overlay(picture: "Image", words: "Sequence[tuple[str, np.ndarray]]") -> "Image":
    """One picture of tiles, first `picture` itself, then one for each of `words` with its attention map (H x W)."""
    from PIL import Image, ImageDraw, ImageFont

    small = picture.resize((TILE, max(1, round(TILE * picture.height / picture.width))), Image.Resampling.BICUBIC)
    tiles = [("", small), *((word, _colored(small, attention)) for word, attention in words)]
    columns = min(TILES_A_ROW, len(tiles))
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (columns * TILE, rows * (small.height + LINE)), "white")
    pen = ImageDraw.Draw(page)
    font: Any = ImageFont.load_default(LINE * 2 // 3)
    for place, (word, tile) in enumerate(tiles):
        x, y = place % columns * TILE, place // columns * (small.height + LINE)
        page.paste(tile, (x, y))
        pen.text((x + 4, y + small.height + 2), word, fill="black", font=font)
    return page


def _colored(picture: "Image", attention: "np.ndarray") -> "Image":
    """`picture` under colours, the brightest where `attention` is largest."""
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image

    value_range = float(np.ptp(attention)) or 1.0
    levels = Image.fromarray(np.uint8(255 * (attention - attention.min()) / value_range))
    levels = levels.resize(picture.size, Image.Resampling.BICUBIC)
    colors = np.uint8(255 * colormaps["inferno"](np.asarray(levels))[..., :3])
    return Image.blend(picture, Image.fromarray(colors), COLOR_SHARE)
