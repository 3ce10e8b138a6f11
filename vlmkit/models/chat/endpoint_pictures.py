"""Pictures as endpoints take them."""

import base64
import io
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

FEW_COLORS = 4096  # drawings, screens and small pictures; these go as PNG, which keeps letters sharp
JPEG_QUALITY = 90


class Picture(NamedTuple):
    """A picture as a data URI, the size of the original, and the size that was sent."""

    url: str
    size: tuple[int, int]
    sent: tuple[int, int]


def encode_picture(image: "Image", most: int, unit: int) -> Picture:
    """`image` with no side above `most` pixels, both multiples of `unit`, and without metadata."""
    from PIL import Image

    scale = min(1.0, most / max(image.size))
    units = max(1, most // unit)
    width, height = (unit * min(max(1, round(side * scale / unit)), units) for side in image.size)
    same = (width, height) == image.size
    sent = image.copy() if same else image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    sent.info = {}
    form = "JPEG" if sent.getcolors(FEW_COLORS) is None else "PNG"
    data = io.BytesIO()
    sent.save(data, form, quality=JPEG_QUALITY)
    url = f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
    return Picture(url, image.size, sent.size)
