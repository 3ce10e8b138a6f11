"""What our HTML pages share: their beginning, escaping, pictures inside. A page asks for nothing from outside.

Small pictures, for pages and terminals.
"""

import base64
import html
import io
from typing import TYPE_CHECKING

from vlmkit.io.images import open_picture
from vlmkit.io.sources import PictureError, is_url, open_source

if TYPE_CHECKING:
    from PIL.Image import Image


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
.none { background: var(--soft); display: grid; place-items: center; font-size: .8rem; overflow-wrap: anywhere; }
"""


def beginning(title: str, style: str) -> str:
    """A page up to its heading; `style` is CSS that comes after what pages share."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<title>{escaped(title)}</title><style>{STYLE}{style}</style><h1>{escaped(title)}</h1>"
    )


def escaped(value: object) -> str:
    return html.escape(str(value))


def picture(path: object, pixels: int) -> str:
    """An `img` with the picture inside, no side longer than `pixels`; or a box that says why there is none."""
    try:
        image = thumbnail(path, pixels, pixels)
    except PictureError as error:
        return f'<div class="none">{escaped(error)}</div>'
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


def thumbnail(path: object, width: int, height: int) -> "Image":
    """The picture at `path` (RGB), no larger than `width` x `height` pixels. Raises PictureError."""
    if not isinstance(path, str):
        raise PictureError("no picture")
    if is_url(path):
        raise PictureError("the picture is not on this machine")
    image, _, _ = open_picture(open_source(path), max(width, height))
    image.thumbnail((width, height))
    return image
