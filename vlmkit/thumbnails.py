"""Small pictures, for pages and terminals."""

from typing import TYPE_CHECKING

from vlmkit.images import open_picture
from vlmkit.sources import PictureError
from vlmkit.tars import locate
from vlmkit.urls import is_url

if TYPE_CHECKING:
    from PIL.Image import Image


def thumbnail(path: object, width: int, height: int) -> "Image":
    """The picture at `path` (RGB), no larger than `width` x `height` pixels. Raises PictureError."""
    if not isinstance(path, str):
        raise PictureError("no picture")
    if is_url(path):
        raise PictureError("the picture is not on this machine")
    image, _, _ = open_picture(locate(path), max(width, height))
    image.thumbnail((width, height))
    return image
