"""What Pillow leaves open: whether a file is complete, what it depends on, and grey of more than eight bits."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlmkit.io.sources import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

PNG_START = b"\x89PNG\r\n\x1a\n"
METADATA_BYTES = 1 << 20  # of a text that is unpacked in search of an orientation
XMP = b"XML:com.adobe.xmp\0"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)[0-9]')
GIF_END = b";"
MAX_SCANS = 500  # of a progressive JPEG: encoders write about ten; each costs a pass over all pixels
STRIPS = ((273, 279), (324, 325))  # TIFF tags: offsets and lengths of strips, of tiles
BITS, COMPRESSION, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 259, 262, 284, 339  # TIFF tags
WHITE_IS_ZERO, RAW, SEPARATE_PLANES, UNSIGNED, SIGNED = 0, 1, 2, 1, 2  # and their values


def without_metadata(data: bytes) -> bytes:
    """A PNG without what its pixels and its orientation do not depend on; any other picture as it is.

    Texts and colour profiles, however large or damaged, are no reason to refuse a picture. Raises PictureError where a
    chunk that matters is damaged or the end is missing.
    """
    if not data.startswith(PNG_START):
        return data
    kept = [PNG_START]
    for kind, chunk, is_intact in _png_chunks(data):
        content = chunk[8:-4]
        if kind[:1].isupper() or kind == b"tRNS":
            if not is_intact:
                raise PictureError(f"damaged: the checksum of a {kind.decode('ascii', 'replace')} chunk is wrong")
            kept.append(chunk)
        elif is_intact and kind == b"eXIf":
            kept.append(chunk)
        elif is_intact and kind in (b"zTXt", b"tEXt") and content.startswith(b"Raw profile type exif\0"):
            kept.append(chunk if _unpacks(content.partition(b"\0")[2][1:], kind == b"zTXt") else b"")
        elif is_intact and kind == b"iTXt" and content.startswith(XMP):
            kept.append(_xmp_orientation(content))
        if kind == b"IEND":
            return b"".join(kept)
    raise PictureError("truncated: the PNG has no end")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Type, all bytes, and whether the checksum is right, of each chunk."""
    position = len(PNG_START)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + length]
        if len(chunk) < 12 + length:
            return
        yield kind, chunk, zlib.crc32(memoryview(chunk)[4:-4]) == int.from_bytes(chunk[-4:])
        position += len(chunk)


def _unpacks(text: bytes, is_compressed: bool) -> bytes:
    """A text, up to a limit; empty if it is longer or damaged."""
    if not is_compressed:
        return text if len(text) <= METADATA_BYTES else b""
    unpacking = zlib.decompressobj()
    try:
        found = unpacking.decompress(text, METADATA_BYTES)
    except zlib.error:
        return b""
    return found if unpacking.eof else b""


def _xmp_orientation(content: bytes) -> bytes:
    """A chunk with the orientation alone that the XMP in an iTXt chunk says; empty if it says none."""
    is_compressed = content[len(XMP) : len(XMP) + 1] == b"\1"
    text = content[len(XMP) + 2 :].split(b"\0", 2)[-1]
    if is_compressed:
        try:
            text = zlib.decompressobj().decompress(text, METADATA_BYTES)
        except zlib.error:
            return b""
    if (found := XMP_ORIENTATION.search(text)) is None:
        return b""
    small = b"iTXt" + XMP + b"\0\0\0\0" + found[0]
    return struct.pack(">I", len(small) - 4) + small + struct.pack(">I", zlib.crc32(small))


def check_integrity(image: "Image", data: bytes) -> None:
    """Raise PictureError unless `data`, which Pillow opened as `image`, is a complete file of its format.

    Of a PNG `without_metadata` does that.
    """
    from PIL import Image

    if image.format in ("GIF", "TIFF"):
        with Image.open(io.BytesIO(data), formats=[image.format]) as again:
            (_check_gif if image.format == "GIF" else _check_tiff)(again, data)
    if image.info.get("progressive") and data.count(b"\xff\xda") > MAX_SCANS:
        raise PictureError(f"more than {MAX_SCANS} scans, which no camera or editor writes")
    if image.format in ("WEBP", "AVIF", "HEIF", "JXL") and not any(data[-max(1024, len(data) // 8) :]):
        raise PictureError("the file ends in zeros, as an interrupted copy does")


def _check_gif(image: Any, data: bytes) -> None:
    """Without the end that the format prescribes, all frames must decode."""
    if not data.rstrip(b"\0").endswith(GIF_END):
        for frame in range(image.n_frames):
            image.seek(frame)
            image.load()


def _check_tiff(image: Any, data: bytes) -> None:
    """Strips and tiles of all pages must lie inside the file, and Pillow must know the layout of the first."""
    bits = _tag(image, BITS, 8)
    if _tag(image, PLANAR, 1) == SEPARATE_PLANES and bits > 8 and _tag(image, COMPRESSION, RAW) == RAW:
        raise PictureError(
            f"a TIFF of separate planes with {bits} bits, which is not supported: interleave its colours"
        )
    for page in range(image.n_frames):
        image.seek(page)
        for tags in STRIPS:
            values = (image.tag_v2.get(tag, ()) for tag in tags)
            offsets, lengths = (value if isinstance(value, tuple) else (value,) for value in values)
            if max(map(sum, zip(offsets, lengths, strict=False)), default=0) > len(data):
                raise PictureError("truncated: the TIFF ends before its picture does")


def _tag(image: Any, tag: int, default: int) -> int:
    """A number of the first page of a TIFF; the default for other formats. Of one number a channel, the first."""
    value = image.tag_v2.get(tag, default) if image.format == "TIFF" else default
    return int(value[0] if isinstance(value, tuple) else value)


def eight_bit(image: "Image") -> "Image":
    """Grey of more bits, signed or of floats, scaled to 8 bits; another picture as it is.

    Black is 0, or the lowest level where some are negative, and then white is the highest there is. Else white is the
    highest that the bits can hold, of floats 1; where these are exceeded, or are 32 bits of which the upper 4 are not
    used, it is 255, 65,535 or the highest there is. NaN and infinity are black.
    """
    import numpy as np
    from PIL import Image

    sample_format = _tag(image, SAMPLE_FORMAT, UNSIGNED)
    is_signed_byte = image.mode == "L" and sample_format == SIGNED
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16") and not is_signed_byte:
        return image
    levels: Any = np.asarray(image)
    if is_signed_byte:
        levels = levels.view(np.int8)
    elif image.mode == "I" and image.format == "TIFF" and sample_format == UNSIGNED:
        levels = levels.view(np.uint32)  # which Pillow takes for signed
    levels = np.nan_to_num(levels.astype(np.float32), posinf=0, neginf=0)
    black, highest = min(float(levels.min(initial=0)), 0.0), float(levels.max(initial=0))
    bits = _tag(image, BITS, 16) - (sample_format == SIGNED)
    if image.mode == "F":
        usual = [1.0]
    elif bits <= 16:
        usual = [float((1 << bits) - 1)]
    else:
        usual = [255.0, 65535.0] + [float((1 << bits) - 1)] * (highest * 16 >= 1 << bits)
    white = highest if black < 0 else next((level for level in usual if level >= highest), highest)
    levels = (levels - black) * (255 / max(white - black, 1e-30))
    if _tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO:
        levels = 255 - levels
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
