"""Is a picture file whole? For the formats whose decoders are content with less than all of it.

JPEG, JPEG 2000, BMP, AVIF and HEIC need nothing here: their decoders report what is missing.
"""

import io
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from vlmkit.sources import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SCANS = 500  # of a progressive JPEG: encoders write about ten; each costs a pass over all pixels
STRIPS = ((273, 279), (324, 325))  # TIFF tags: offsets and lengths of strips, of tiles

_libtiff = threading.local()


def check_whole(image: "Image", data: bytes) -> None:
    """Raise PictureError unless `data`, which Pillow opened as `image`, is a whole file of its format."""
    check = {"PNG": _png, "GIF": _gif, "TIFF": _tiff}.get(image.format or "")
    if check is not None:
        check(data)
    if image.info.get("progressive") and data.count(b"\xff\xda") > MAX_SCANS:
        raise PictureError(f"more than {MAX_SCANS} scans, which no camera or editor writes")
    if image.format in ("WEBP", "AVIF", "HEIF") and not any(data[-max(1024, len(data) // 8) :]):
        raise PictureError("the file ends in zeros, as an interrupted copy does")


def _png(data: bytes) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.verify()  # the checksums of all chunks up to IEND


def _gif(data: bytes) -> None:
    """Walk over the blocks to the trailer (GIF89a specification, 1990)."""
    try:
        at = 13 + _gif_table(data[10])
        while (kind := data[at]) != 0x3B:
            if kind == 0x2C:
                at += 11 + _gif_table(data[at + 9])
            elif kind == 0x21:
                at += 2
            else:
                raise PictureError("the GIF is damaged between its blocks")
            while data[at]:
                at += 1 + data[at]
            at += 1
    except IndexError:
        raise PictureError("truncated: the GIF has no end") from None


def _gif_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _tiff(data: bytes) -> None:
    """Strips and tiles of all pages must lie inside the file."""
    from PIL import Image, TiffImagePlugin

    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        for page in range(image.n_frames):
            image.seek(page)
            for offsets, lengths in STRIPS:
                ends = map(sum, zip(_numbers(image, offsets), _numbers(image, lengths), strict=False))
                if max(ends, default=0) > len(data):
                    raise PictureError("truncated: the TIFF ends before its picture does")


def _numbers(image: Any, tag: int) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def load(image: "Image") -> None:
    """Decode. What libtiff calls an error is one here: Pillow leaves it at a line on standard error."""
    _libtiff.failed = False
    if image.format == "TIFF":
        _listen_to_libtiff()
    image.load()
    if _libtiff.failed:
        raise PictureError("the TIFF is damaged")


@cache
def _listen_to_libtiff() -> Callable[..., None] | None:
    """Take libtiff's errors, for this process, into a flag of the thread; None where Pillow hides its libtiff."""
    import ctypes

    from PIL import _imaging

    def note(_module: int, _format: int, _arguments: int) -> None:
        _libtiff.failed = True

    handler = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(note)
    try:
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(handler)
    except (OSError, AttributeError):  # linked statically
        return None
    return handler  # kept, since libtiff calls it
