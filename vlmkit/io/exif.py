"""What a camera wrote into a picture: when, with what and where it was taken.

Read here, since Pillow takes ten times as long to convert all other fields, too: 2 % of the time of `embed`.
"""

import contextlib
import math
import re
import struct
from collections.abc import Container
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

Facts = dict[str, Any]

ORIENTATION, MAKE, MODEL, CHANGED, EXIF_IFD, GPS_IFD = 0x0112, 0x010F, 0x0110, 0x0132, 0x8769, 0x8825  # EXIF tags
FIRST = {MAKE, MODEL, CHANGED, EXIF_IFD, GPS_IFD}
TAKEN = (0x9003, 0x9004)  # DateTimeOriginal, DateTimeDigitized
PLACE = {"lat": (1, 2, "N", "S", 90), "lon": (3, 4, "E", "W", 180)}  # tags of letter and value, letters, most degrees
OF_PLACE = {tag for tags in PLACE.values() for tag in tags[:2]}
ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
FORMS = {3: ("H", 2), 4: ("I", 4), 5: ("II", 8), 10: ("ii", 8)}  # of numbers, by EXIF's types; others are bytes
LONGEST = 200  # bytes of a value
TIME = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d)(?::(\d\d))?")
DECIMALS = 7  # of degrees: a centimetre


def facts_of(image: "Image", data: bytes) -> Facts:
    """`taken`, `camera`, `lat` and `lon` of a picture that Pillow opened from `data`, where they are known."""
    exif = image.info.get("exif")
    if exif is None and "Raw profile type exif" in image.info:
        with contextlib.suppress(Exception):  # corrupt EXIF, of which reading may raise anything
            exif = image.getexif().tobytes()
    return exif_facts(exif or (data if image.format == "TIFF" else b""))


def exif_facts(data: bytes, times: tuple[int, ...] = ()) -> Facts:
    """What EXIF, or a file in the form of a TIFF, says and makes sense; of corrupt data, what can be read.

    `times` are further tags of the first directory that say when the picture was taken.
    """
    data = data.removeprefix(b"Exif\0\0") if data[:1] == b"E" else data
    if (order := ORDERS.get(data[:4])) is None:
        return {}
    first = _directory(data, order, struct.unpack_from(f"{order}I", data.ljust(8, b"\0"), 4), FIRST)
    within = _directory(data, order, first.get(EXIF_IFD), TAKEN)
    facts: Facts = {}
    stamps = [within.get(tag) for tag in TAKEN] + [first.get(tag) for tag in times]
    if taken := next(filter(None, map(iso_time, stamps)), None):
        facts["taken"] = taken
    if camera := camera_name(first.get(MAKE), first.get(MODEL)):
        facts["camera"] = camera
    return facts | _place(_directory(data, order, first.get(GPS_IFD), OF_PLACE))


def iso_time(stamp: Any) -> str | None:
    """The local time that EXIF writes as 2024:06:30 12:34:56, in ISO 8601; None where there is no such time."""
    found = TIME.match(_text(stamp))
    if found is None:
        return None
    try:
        return datetime(*(int(part or 0) for part in found.groups())).isoformat()  # type: ignore[arg-type]
    except ValueError:
        return None


def camera_name(make: Any, model: Any) -> str:
    """Maker and model, the maker once: Canon EOS R5, NIKON D850, SONY ILCE-7M3."""
    maker, name = _text(make), _text(model)
    if not maker or name.lower().startswith(maker.split()[0].lower()):
        return name or maker
    return f"{maker} {name}".strip()


def _text(value: Any) -> str:
    if not isinstance(value, bytes):
        return " ".join(value.split()) if isinstance(value, str) else ""
    text = value.partition(b"\0")[0].decode(errors="replace")
    return " ".join((text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)).split())


def _place(gps: dict[int, Any]) -> Facts:
    """`lat` and `lon` in degrees. 0, 0 is what cameras write that do not know."""
    place = {}
    for name, (letter, value, positive, negative, most) in PLACE.items():
        side, parts = _text(gps.get(letter)).upper()[:1], gps.get(value)
        degrees = _degrees(parts) if isinstance(parts, tuple) else math.nan
        if side not in (positive, negative) or not abs(degrees) <= most:
            return {}
        place[name] = round(-abs(degrees) if side == negative else degrees, DECIMALS) + 0.0
    return place if any(place.values()) else {}


def _degrees(parts: tuple[int, ...]) -> float:
    """Of degrees, minutes and seconds, each a fraction of two numbers; NaN where they are none."""
    try:
        return sum(parts[at] / parts[at + 1] / 60 ** (at // 2) for at in range(0, min(len(parts), 6), 2))
    except (ZeroDivisionError, IndexError):
        return math.nan


def _directory(data: bytes, order: str, offset: Any, wanted: Container[int]) -> dict[int, Any]:
    """The `wanted` tags of the directory at `offset` (a value of one number) with their values: numbers or bytes."""
    found: dict[int, Any] = {}
    if not isinstance(offset, tuple) or not offset or offset[0] + 2 > len(data):
        return found
    start = offset[0] + 2
    (count,) = struct.unpack_from(f"{order}H", data, offset[0])
    count = min(count, (len(data) - start) // 12)
    for tag, kind, number, value in struct.iter_unpack(f"{order}HHI4s", data[start : start + 12 * count]):
        if tag in wanted:
            form, size = FORMS.get(kind, ("", 1))
            length = min(number * size, LONGEST) // size * size
            if length > 4:
                (at,) = struct.unpack(f"{order}I", value)
                value = data[at : at + length]
            value = value[: min(length, len(value) // size * size)]
            found[tag] = struct.unpack(f"{order}{form * (len(value) // size)}", value) if form else value
    return found
