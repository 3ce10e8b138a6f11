"""RAW files made by hand: DNGs of an RGGB sensor, as no library within reach writes one."""

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL = 1, 2, 3, 4, 5, 10
FORMS = {BYTE: "B", SHORT: "H", LONG: "I", RATIONAL: "I", SRATIONAL: "i"}
Tags = dict[int, tuple[int, Any]]


def dng(picture: Image.Image, preview: tuple[int, int] | None = None, orientation: int = 1) -> bytes:
    """A DNG that shows `picture`, with a JPEG of the size `preview` in a SubIFD; what its EXIF says stands here."""
    pixels = np.asarray(picture.convert("RGB"), float) / 255
    height, width, _ = pixels.shape
    linear = (pixels**2.2 * 60_000).astype("<u2")
    sensor = linear[..., 1].copy()
    sensor[0::2, 0::2], sensor[1::2, 1::2] = linear[0::2, 0::2, 0], linear[1::2, 1::2, 2]
    identity = [10_000 if at % 8 == 0 else 0 for at in range(18) if at % 2 == 0]
    first: Tags = _image(0, width, height, [16], 1, 32803, "sensor", sensor.nbytes) | {
        271: (ASCII, "NIKON CORPORATION"),
        272: (ASCII, "NIKON D850"),
        274: (SHORT, [orientation]),
        34665: (LONG, "exif"),
        33421: (SHORT, [2, 2]),
        33422: (BYTE, [0, 1, 1, 2]),
        50706: (BYTE, [1, 4, 0, 0]),
        50708: (ASCII, "NIKON D850"),
        50717: (LONG, [60_000]),
        50721: (SRATIONAL, [part for value in identity for part in (value, 10_000)]),
        50728: (RATIONAL, [1, 1] * 3),
        50778: (SHORT, [21]),
    }
    parts: dict[str, Tags | bytes] = {"first": first, "exif": {36867: (ASCII, "2024:06:30 12:34:56")}}
    if preview is not None:
        jpeg = io.BytesIO()
        picture.convert("RGB").resize(preview).save(jpeg, "JPEG", quality=95)
        first[330] = LONG, "preview"
        parts["preview"] = _image(1, *preview, [8, 8, 8], 7, 6, "jpeg", len(jpeg.getvalue()))
        parts["jpeg"] = jpeg.getvalue()
    return tiff(parts | {"sensor": sensor.tobytes()})


def _image(
    kind: int, width: int, height: int, bits: list[int], compression: int, photometric: int, data: str, size: int
) -> Tags:
    longs = {254: kind, 256: width, 257: height, 278: height, 279: size}
    shorts = {259: compression, 262: photometric, 277: len(bits), 284: 1}
    tags: Tags = {tag: (LONG, [value]) for tag, value in longs.items()}
    return tags | {tag: (SHORT, [value]) for tag, value in shorts.items()} | {258: (SHORT, bits), 273: (LONG, data)}


def tiff(parts: dict[str, Tags | bytes]) -> bytes:
    """A TIFF of directories and data one behind the other; a value that is the name of a part is where that begins."""
    places = dict.fromkeys(parts, 0)
    for _ in range(2):  # first for the places
        out = bytearray(struct.pack("<2sHI", b"II", 42, 8))
        for name, part in parts.items():
            places[name] = len(out)
            out += part if isinstance(part, bytes) else _directory(part, places, len(out))
            out += bytes(len(out) % 2)
    return bytes(out)


def _directory(tags: Tags, places: dict[str, int], start: int) -> bytes:
    entries, values = struct.pack("<H", len(tags)), b""
    behind = start + 2 + 12 * len(tags) + 4
    for tag, (kind, value) in sorted(tags.items()):
        if kind == ASCII:
            packed, number = f"{value}\0".encode(), len(value) + 1
        else:
            listed = [places[value]] if isinstance(value, str) else value
            packed, number = struct.pack(f"<{len(listed)}{FORMS[kind]}", *listed), len(listed)
            number //= 2 if kind in (RATIONAL, SRATIONAL) else 1
        if len(packed) > 4:
            packed, values = struct.pack("<I", behind + len(values)), values + packed + bytes(len(packed) % 2)
        entries += struct.pack("<HHI", tag, kind, number) + packed.ljust(4, b"\0")
    return entries + bytes(4) + values
