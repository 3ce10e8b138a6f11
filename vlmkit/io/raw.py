"""RAW files of cameras, by LibRaw: the preview that the camera wrote into them, or what is developed."""

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlmkit.io.exif import CHANGED, ORIENTATION, Facts, exif_facts
from vlmkit.io.images import SIDEWAYS, TURNS, check_pixels, decode, decoding
from vlmkit.io.sources import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2
    from rawpy import RawPy

TIFF = (b"II*\0", b"MM\0*")
OLYMPUS, PANASONIC = (b"IIRO", b"IIRS", b"MMOR"), b"IIU\0"  # as TIFF but for that
FUJIFILM, CANON = b"FUJIFILMCCD-RAW", b"ftypcrx "
OTHERS = (FUJIFILM, b"FOVb", b"\0MRM")
SENSOR = {32803, 34892}  # TIFF's photometric interpretations of a colour filter array, and of linear raw
PHOTOMETRIC, SUB_IFDS, DNG_VERSION = 262, 330, 50706  # TIFF tags
STRIPS = ((273, 279), (324, 325))  # of offsets and lengths
MOST_IFDS = 64
FLIPS = {3: 3, 5: 8, 6: 6}  # LibRaw's turns, as EXIF orientations


class RawDecoder:
    def accepts(self, data: bytes) -> bool:
        if data.startswith(TIFF):
            return data[8:10] == b"CR" or any(map(_is_raw, _ifds(data)))
        starts = (*OLYMPUS, PANASONIC, *OTHERS)
        return data.startswith(starts) or data[4:12] == CANON or data[6:14] == b"HEAPCCDR"

    def decode(self, data: bytes, size: int | None) -> tuple["Image", Facts]:
        """The largest preview where no side has under `size` pixels; else the file is developed, at half its size if
        that will do, with the camera's white balance. Without `size` it is developed as a whole.
        """
        import rawpy

        if _end(data) > len(data):
            raise PictureError("truncated: the RAW file ends before its picture does")
        try:
            with rawpy.imread(io.BytesIO(data)) as raw:
                width, height = _shape(raw.sizes)
                check_pixels(width, height)
                image, facts = _preview(raw, size) or (None, {})
                # A preview that stands when the original lies is of unknown orientation.
                if size and image and (image.width > image.height) == (width > height):
                    image = image if min(image.size) >= min(size, width, height) else None
                else:
                    image = None
                if image is None:
                    with decoding(width * height):
                        image = _developed(raw, size)
        except (rawpy.LibRawError, rawpy.NotSupportedError) as error:
            raise PictureError(f"LibRaw cannot read the RAW file ({_reason(error)})") from None
        return image, facts | exif_facts(_as_tiff(data)) | {"width": width, "height": height}


def _reason(error: Exception) -> str:
    found = error.args[0] if error.args else error
    return found.decode(errors="replace") if isinstance(found, bytes) else str(found)


def _shape(sizes: Any) -> tuple[int, int]:
    """Width and height of the original, upright, with square pixels."""
    aspect = sizes.pixel_aspect
    width = round(sizes.width * max(aspect, 1.0))
    height = round(sizes.height / min(aspect, 1.0))
    return (height, width) if FLIPS.get(sizes.flip) in SIDEWAYS else (width, height)


def _preview(raw: "RawPy", size: int | None) -> tuple["Image", Facts] | None:
    """The largest picture within the file, upright, and what its EXIF says, which is LibRaw's if it has none.

    None where there is none that can be read.
    """
    from PIL import Image

    try:
        data: Any = raw.extract_thumb().data
        if isinstance(data, bytes):
            image, _ = decode(data, size, ["JPEG"])
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as opened:
                is_upright = ORIENTATION in opened.getexif()
                facts = exif_facts(opened.info.get("exif", b""), (CHANGED,))
        else:
            image, facts, is_upright = Image.fromarray(data).convert("RGB"), {}, False
    except Exception:  # then the file is developed
        return None
    turn = TURNS.get(FLIPS.get(raw.sizes.flip, 1))
    if turn and not is_upright:
        image = image.transpose(Image.Transpose[turn])
    return image, facts


def _developed(raw: "RawPy", size: int | None) -> "Image":
    from PIL import Image

    is_half_enough = bool(size) and min(raw.sizes.width, raw.sizes.height) // 2 >= (size or 0)
    return Image.fromarray(raw.postprocess(use_camera_wb=True, half_size=is_half_enough))


def _as_tiff(data: bytes) -> bytes:
    if data.startswith((*OLYMPUS, PANASONIC)):
        return (b"MM\0*" if data.startswith(b"MM") else b"II*\0") + data[4:]
    return data


def _ifds(data: bytes) -> "Iterator[ImageFileDirectory_v2]":
    """The directories of a file that is like a TIFF, and those within them, as far as they can be read."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    with contextlib.suppress(Exception):  # reading a damaged one may raise anything
        file = io.BytesIO(_as_tiff(data))
        first = ImageFileDirectory_v2(file.read(8))
        pending = [first.next]
        for _ in range(MOST_IFDS):
            directory = ImageFileDirectory_v2(file.getvalue()[:8])
            file.seek(pending.pop(0))
            directory.load(file)
            yield directory
            inner = directory.get(SUB_IFDS, ())
            pending += inner if isinstance(inner, tuple) else (inner,)
            pending += [directory.next] if directory.next else []


def _is_raw(directory: "ImageFileDirectory_v2") -> bool:
    return DNG_VERSION in directory or directory.get(PHOTOMETRIC) in SENSOR


def _end(data: bytes) -> int:
    """Up to which byte there must be data, by what the file says itself, where that is known."""
    with contextlib.suppress(struct.error):
        if data.startswith(FUJIFILM):
            parts = struct.unpack_from(">6I", data, 84)  # offsets and lengths: preview, its header, sensor
            return max(offset + length for offset, length in zip(parts[::2], parts[1::2], strict=True))
        if data[4:12] == CANON:
            return _end_of_boxes(data)
    if not data.startswith((*TIFF, *OLYMPUS)):
        return 0
    ends = [0]
    for directory in _ifds(data):
        if _is_raw(directory) or data.startswith(OLYMPUS):
            for tags in STRIPS:
                values = (directory.get(tag, ()) for tag in tags)
                offsets, lengths = (value if isinstance(value, tuple) else (value,) for value in values)
                ends += map(sum, zip(offsets, lengths, strict=False))
    return max(ends)


def _end_of_boxes(data: bytes) -> int:
    """The end of the last box of a file in the form of MP4."""
    end = 0
    while 0 <= end <= len(data) - 16:
        (size,) = struct.unpack_from(">I", data, end)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, end + 8)
        if size < 8:
            break
        end += size
    return end
