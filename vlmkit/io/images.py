"""Opens pictures completely or not at all, upright by their EXIF orientation, as RGB.

Decoders run in threads that cannot be stopped inside C code, so what is known to make decoding very slow (too
many pixels, too many scans) is refused first. Decoders of PNG, GIF, TIFF and WebP accept an incomplete
file, so `io.formats` looks for its end; those of other formats report an incomplete file.
"""

import io
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from vlmkit.errors import first_line
from vlmkit.io.exif import ORIENTATION, Facts, facts_of
from vlmkit.io.formats import check_integrity, eight_bit, without_metadata
from vlmkit.io.kinds import BUILT_IN, DECODERS, Decoder, is_installed
from vlmkit.io.limits import MAX_PIXELS, MAX_PIXELS_VARIABLE
from vlmkit.io.parts import Part
from vlmkit.io.sources import Bytes, Memory, PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]  # EPS would run Ghostscript
PILLOWS_OWN = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM")  # how those begin that are not asked about elsewhere
HUGE = 178_956_970  # pixels from which on what cannot be decoded at a fraction of its size is reduced at once
AVERAGED = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")  # modes whose pixels can be
# What is often taken for a picture, by how it begins.
OTHER_FILES = {
    b"%PDF": "a PDF document",
    b"8BPS": "a Photoshop drawing",
    b"gimp xcf": "a GIMP drawing",
    b"PK\3\4": "a ZIP archive",
}
MATROSKA = b"\x1aE\xdf\xa3"
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f\xff]")  # not in text
LARGE = 50_000_000  # pixels from which on pictures are decoded one at a time: memory is for one of them, not for all
DRAFT_MARGIN = 1.6  # below it the vectors of fine patterns change: tests/benchmarks/decode.py
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
    if isinstance(source, Part):
        return source.image(size)
    image, facts = open_with_facts(source, size)
    return image, facts["width"], facts["height"]


def open_with_facts(source: Bytes, size: int | None = None) -> tuple["Image", Facts]:
    """As `open_picture`: the image, and its `width` and `height` with what the camera wrote (see `facts_of`)."""
    from PIL import Image

    data = without_metadata(_read(source))
    with _picture_errors(data):
        if (decoder := _decoder_of(data)) is not None:
            return decoder.decode(data, size)
        try:
            return decode(data, size)
        except Image.UnidentifiedImageError:
            for name in DECODERS.plugins():
                if (decoder := _decoder(name)).accepts(data):
                    return decoder.decode(data, size)
            raise


def decode(data: bytes, size: int | None, formats: list[str] = FORMATS) -> tuple["Image", Facts]:
    """As `open_with_facts`, by Pillow, which must know one of these `formats`."""
    from PIL import Image

    with _opened(data, formats) as image:
        width, height = image.size
        check_integrity(image, data)
        if size and image.format in ("JPEG", "MPO"):
            side = int(DRAFT_MARGIN * size)
            image.draft("RGB", (side, side))
        with decoding(width * height):
            _load(image)
            orientation = _orientation(image)
            upright = _rgb(eight_bit(_reduced(image, size)))
            if orientation in TURNS:
                upright = upright.transpose(Image.Transpose[TURNS[orientation]])
        if orientation in SIDEWAYS:
            width, height = height, width
        return upright, {"width": width, "height": height} | facts_of(image, data)


def decoding(pixels: int) -> AbstractContextManager[Any]:
    """Held while so many pixels are decoded: pictures that are large wait for each other."""
    return _large if pixels > LARGE else nullcontext()


def check_picture(source: Bytes) -> None:
    """Raise PictureError unless `source` is a picture that is complete, judging by its header and end.

    A JPEG that ends as it should and a PNG whose checksums are right are not decoded, which is ten times as fast;
    others are. Damage in the middle of a JPEG is found only when it is opened.
    """
    if isinstance(source, Part):
        source.image()
        return
    data = without_metadata(_read(source))
    with _picture_errors(data):
        if (decoder := _decoder_of(data)) is not None:
            decoder.decode(data, 1)
            return
        with _opened(data, FORMATS) as image:
            check_integrity(image, data)
            if image.format == "PNG" or (image.format in ("JPEG", "MPO") and data.endswith(JPEG_END)):
                return
    open_picture(Memory(data))


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
    except ImportError as error:
        broken = PictureError(f"the package that decodes it cannot be imported ({first_line(error)})")
        broken.remedy = "reinstall that package"
        raise broken from None
    except Exception as error:  # on damaged files Pillow's decoders raise nearly every kind
        raise PictureError(str(error) or repr(error)) from None


def _decoder_of(data: bytes) -> Decoder | None:
    """What decodes `data` in place of Pillow. Raises PictureError where its package is missing."""
    if data.startswith(PILLOWS_OWN):
        return None
    for name, kind in BUILT_IN.items():
        decoder: Decoder = _decoder(name)
        if decoder.accepts(data):
            if is_installed(kind):
                return decoder
            error = PictureError(
                f"{name} pictures need one more package: {shlex.join(['pip', 'install', kind.install])}"
            )
            error.remedy = "run it again with the package"
            raise error
    return None


@cache
def _decoder(name: str) -> Decoder:
    return DECODERS.load(name)()


def _opened(data: bytes, formats: list[str]) -> "Image":
    from PIL import Image

    with _opening:  # Pillow has one limit for the whole process, which may not be ours
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    check_pixels(image.width, image.height)
    return image


def check_pixels(width: int, height: int) -> None:
    """Raise PictureError for more pixels than a picture may have."""
    if width * height > max_pixels():
        size = f"{width:,} x {height:,}"
        raise PictureError(f"too many pixels: {size}; the limit is {max_pixels():,}, --max-pixels N sets another")


def max_pixels() -> int:
    """How many pixels a picture may have: `--max-pixels`, which is handed on in the environment."""
    return int(os.environ.get(MAX_PIXELS_VARIABLE) or MAX_PIXELS)


def _what_it_is(data: bytes) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data.startswith((b"II*\0", b"MM\0*")):
        return "a TIFF of a kind that is not supported (bits, colours, planes or compression): save it with 8 bits"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "not a picture but a web page"
    if (data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis")) or data.startswith(MATROSKA):
        return "a film, not a picture (a frame of it is called FILE#t=SECONDS)"
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
