"""Opens pictures completely or not at all, upright by their EXIF orientation, as RGB.

Decoders run in threads that cannot be stopped inside C code, so what is known to make decoding very slow (too
many pixels, too many scans) is refused first. Decoders of PNG, GIF, TIFF and WebP accept an incomplete
file, so `io.formats` looks for its end; those of other formats report an incomplete file.
"""

import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

from vlmkit.io.formats import check_integrity, eight_bit, without_metadata
from vlmkit.io.limits import MAX_PIXELS, MAX_PIXELS_VARIABLE
from vlmkit.io.parts import Part
from vlmkit.io.sources import Bytes, PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF"]  # EPS would run Ghostscript
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
HUGE = 178_956_970  # pixels from which on what cannot be decoded at a fraction of its size is reduced at once
AVERAGED = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")  # modes whose pixels can be
# What is often taken for a picture, by how it begins.
OTHER_FILES = {
    b"%PDF": "a PDF document",
    b"8BPS": "a Photoshop drawing",
    b"gimp xcf": "a GIMP drawing",
    b"\x1aE\xdf\xa3": "a film",
    b"PK\3\4": "a ZIP archive",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
}
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f\xff]")  # not in text
LARGE = 50_000_000  # pixels from which on pictures are decoded one at a time: memory is for one of them, not for all
DRAFT_MARGIN = 1.6  # below it the vectors of fine patterns change: tests/benchmarks/decode.py
ORIENTATION = 0x0112  # the EXIF tag
# What makes a picture with this EXIF orientation upright.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
SIDEWAYS = (5, 6, 7, 8)
JPEG_END = b"\xff\xd9"

_opening = threading.Lock()
_large = threading.Lock()
_libtiff = threading.local()


def open_picture(source: Bytes, size: int | None = None) -> tuple["Image", int, int]:
    """Decode a picture completely: (RGB image, width, height), rotated by its EXIF orientation.

    `width` and `height` are in pixels of the original. With `size`, a JPEG may be decoded at a fraction of its size,
    with no side under 1.6 times `size` (Pillow's `draft`, which scales in the DCT domain). Of an animation it is the
    first frame, of several pages the first. Embedded colour profiles are ignored, as the models' own
    libraries do. Pictures of more than `max_pixels` are refused. Raises PictureError.
    """
    from PIL import Image

    if isinstance(source, Part):
        return source.image(size)
    data = without_metadata(_read(source))
    with _picture_errors(data), _opened(data) as image:
        width, height = image.size
        check_integrity(image, data)
        if size and image.format in ("JPEG", "MPO"):
            side = int(DRAFT_MARGIN * size)
            image.draft("RGB", (side, side))
        with _large if width * height > LARGE else nullcontext():
            _load(image)
            orientation = _orientation(image)
            upright = _rgb(eight_bit(_reduced(image, size)))
            if orientation in TURNS:
                upright = upright.transpose(Image.Transpose[TURNS[orientation]])
        return upright, *((height, width) if orientation in SIDEWAYS else (width, height))


def check_picture(source: Bytes) -> None:
    """Raise PictureError unless `source` is a picture that is complete, judging by its header and end.

    A JPEG that ends as it should and a PNG whose checksums are right are not decoded, which is ten times as fast;
    others are. Damage in the middle of a JPEG is found only when it is opened.
    """
    if isinstance(source, Part):
        source.image()
        return
    data = without_metadata(_read(source))
    with _picture_errors(data), _opened(data) as image:
        check_integrity(image, data)
        if image.format == "PNG" or (image.format in ("JPEG", "MPO") and data.endswith(JPEG_END)):
            return
    open_picture(source)


def _read(source: Bytes) -> bytes:
    data = source.read()
    if not data:
        raise PictureError("the file is empty")
    return data


@contextmanager
def _picture_errors(data: bytes) -> Iterator[None]:
    """Turns all errors in the block, about the picture `data`, into PictureError."""
    from PIL import Image

    try:
        yield
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(_what_it_is(data)) from None
    except MemoryError:
        raise PictureError("not enough memory to decode it") from None
    except Exception as error:  # on damaged files Pillow's decoders raise nearly every kind
        raise PictureError(str(error) or repr(error)) from None


def _opened(data: bytes) -> "Image":
    from PIL import Image

    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        _register_heif()
    formats = [name for name in FORMATS if name != "HEIF" or name in Image.OPEN]
    with _opening:  # Pillow has one limit for the whole process, which may not be ours
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if image.width * image.height > max_pixels():
        size = f"{image.width:,} x {image.height:,}"
        raise PictureError(f"too many pixels: {size}; the limit is {max_pixels():,}, --max-pixels N sets another")
    return image


def max_pixels() -> int:
    """How many pixels a picture may have: `--max-pixels`, which is handed on in the environment."""
    return int(os.environ.get(MAX_PIXELS_VARIABLE) or MAX_PIXELS)


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        error = PictureError("HEIC pictures need one more package: pip install 'vlmkit[heic]'")
        error.remedy = "run it again with the package"
        raise error from None
    register_heif_opener(thumbnails=False)


def _what_it_is(data: bytes) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data.startswith((b"II*\0", b"MM\0*")):
        return "a TIFF of a kind that is not supported (bits, colours, planes or compression): save it with 8 bits"
    if b"<svg" in head:
        return "an SVG drawing, not a picture of pixels"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "not a picture but a web page"
    if data[4:8] == b"ftyp" and data[8:12] not in (*HEIC_BRANDS, b"avif", b"avis", b"crx "):
        return "a film, not a picture"
    for start, kind in OTHER_FILES.items():
        if data.startswith(start):
            return f"{kind}, not a picture that can be read"
    if head and not CONTROL.search(head):
        return "text, not a picture that can be read (a list of names is piped in: < FILE)"
    return "not a picture that can be read"


def _orientation(image: "Image") -> int:
    """The EXIF orientation, 1 to 8; 1 where it is missing or invalid."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a picture with corrupt EXIF is good; reading EXIF may raise anything
        return 1
    return found if found in TURNS else 1


def _reduced(image: "Image", size: int | None) -> "Image":
    """A huge picture at a fraction of its size, no side under 1.6 times `size`: further steps make copies of it."""
    factor = int(min(image.size) / (DRAFT_MARGIN * size)) if size else 0
    if image.width * image.height <= HUGE or factor < 2 or image.mode not in AVERAGED:
        return image
    return image.reduce(factor)


def _rgb(image: "Image") -> "Image":
    """RGB; transparent parts become white, as on a page."""
    from PIL import Image, ImageCms

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        if (converted := ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")) is None:
            raise PictureError("its LAB colours cannot be converted")
        return converted
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


def middle(image: "Image", ratio: int = 16) -> "Image":
    """The middle of a very long picture: the part that remains when its short side is scaled and its long one cropped.

    Without it a picture of 65,000 x 1 pixels becomes one of 14,560,000 x 224 on the way.
    """
    short, long = sorted(image.size)
    cut = (long - ratio * short) // 2
    if cut <= 0:
        return image
    across = image.width == long
    return image.crop((cut, 0, long - cut, short) if across else (0, cut, short, long - cut))


def _load(image: "Image") -> None:
    """Decode, and raise what libtiff reports as an error: Pillow would return wrong pixels of a damaged fax page."""
    _libtiff.failed = False
    if image.format == "TIFF":
        _listen_to_libtiff()
    image.load()
    if _libtiff.failed:
        raise PictureError("the TIFF is damaged")


@cache
def _listen_to_libtiff() -> Callable[..., None] | None:
    """Have libtiff's errors set a flag of the thread; None where Pillow's libtiff cannot be reached."""
    import ctypes

    def note(_module: int, _format: int, _arguments: int) -> None:
        _libtiff.failed = True

    handler = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(note)
    try:
        from PIL import _imaging  # linked to libtiff; no public name has its path (Pillow 11.3 to 13.0)

        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(handler)
    except (ImportError, OSError, AttributeError):  # another Pillow, or libtiff linked statically
        return None
    return handler  # kept, since libtiff calls it
