"""HTML pages from the folder `templates`, with thumbnails inside. A page loads nothing from outside."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.io.images import open_picture
from vlmkit.io.sources import PictureError, is_url, open_source

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL.Image import Image

PIECES_AT_ONCE = 64


def render(template: str, **values: object) -> Iterator[bytes]:
    """The page in pieces, each UTF-8, as the iterables among `values` are read. Text in `values` is escaped."""
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    stream = environment.get_template(template).stream(values)
    stream.enable_buffering(PIECES_AT_ONCE)
    for text in stream:
        yield text.encode(errors="backslashreplace")


def picture(path: object, pixels: int) -> "Markup":
    """An `img` with the picture inside, no side longer than `pixels`; or a box that says why there is none."""
    from markupsafe import Markup

    try:
        image = thumbnail(path, pixels, pixels)
    except PictureError as error:
        return placeholder(error)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return Markup('<img alt="" src="data:image/jpeg;base64,{}">').format(base64.b64encode(data.getvalue()).decode())


def placeholder(text: object) -> "Markup":
    """A box in place of a picture."""
    from markupsafe import Markup

    return Markup('<div class="none">{}</div>').format(text)


def thumbnail(path: object, width: int, height: int) -> "Image":
    """The picture at `path` (RGB), no larger than `width` x `height` pixels. Raises PictureError."""
    if not isinstance(path, str):
        raise PictureError("no picture")
    if is_url(path):
        raise PictureError("the picture is not on this machine")
    image, _, _ = open_picture(open_source(path), max(width, height))
    image.thumbnail((width, height))
    return image
