"""Films as containers of pictures: `clip.mp4#t=12.5` is the frame that is shown 12.5 seconds after the first one."""

import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any

from vlmkit.io.executor import ahead
from vlmkit.io.parts import Choice, Part
from vlmkit.io.records import Record
from vlmkit.io.sources import Bytes, MissingMember, PictureError, Source, open_file

if TYPE_CHECKING:
    from av import VideoFrame
    from PIL.Image import Image

    from vlmkit.io.video.film import Film

AHEAD = 8  # frames that are decoded before they are asked for
KEPT = 1 << 28  # bytes of decoded frames that are kept until they are opened; others are decoded again
MARGIN = 1.6  # see Part.image
SLACK = Fraction(1, 2)  # seconds for which the last frame is shown still
PHOTOS = (".heic", ".HEIC", ".jpg", ".JPG", ".jpeg", ".JPEG", ".heif", ".HEIF", ".png", ".PNG", ".dng", ".DNG")
LIVE = 4  # seconds of a film that may be the moving part of a photo
TIME = re.compile(r"t=(\d{1,9}(?:\.\d{1,9})?)s?")
FINEST = Fraction(1, 1000)  # seconds to which the time of a frame is told, unless frames follow each other more quickly


@dataclass(frozen=True, slots=True)
class Frame(Part):
    """The frame that is shown at a time of a film, its field `time`."""

    at: Fraction = Fraction(0)
    kept: "_Kept | None" = field(default=None, compare=False)

    @property
    def label(self) -> str:
        from vlmkit.io.video.film import clock_of

        return f"frame at {clock_of(self.at)}"

    def image(self, size: int | None = None) -> "tuple[Image, int, int]":
        from vlmkit.io.video.film import film_errors

        with film_errors():
            shown = self.kept.shown if self.kept else None
            return _upright(*(shown or _decoded(self.file, self.at)), size)


class _Kept:
    """A decoded frame and the `shape` of its pixels, width to height. Pickled without; and where frames of KEPT bytes
    are kept no further one is."""

    _lock = threading.Lock()
    _total = 0

    def __init__(self, frame: "VideoFrame | None" = None, shape: Fraction = Fraction(1)) -> None:
        size = sum(plane.buffer_size for plane in frame.planes) if frame else 0
        with _Kept._lock:
            fits = _Kept._total + size <= KEPT
            self._size = size if fits else 0
            _Kept._total += self._size
        self.shown = (frame, shape) if frame and fits else None

    def __del__(self) -> None:
        with _Kept._lock:
            _Kept._total -= self._size

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()


class VideoReader:
    """Films whose members are frames, `t=12.5`."""

    separator = "#"
    holds_files = False
    requires = ("av", "video")
    chosen_by = ("every", "frames")
    is_quick = False

    def members(self, file: Source) -> Iterator[tuple[str, Bytes]]:
        return self.chosen(file, Choice())

    def chosen(self, file: Source, choice: Choice) -> Iterator[tuple[str, Bytes]]:
        frames = _chosen(file, choice)
        for found in ahead(repeat(None), lambda _: next(frames, None), 1, AHEAD):
            if found is None:
                return
            yield found

    def belongs_to_photo(self, path: str) -> bool:
        """Whether a film is the moving part of the photo beside it, as telephones keep Live Photos."""
        stem, suffix = os.path.splitext(path)
        if suffix.lower() not in (".mov", ".mp4") or not any(map(os.path.isfile, map(stem.__add__, PHOTOS))):
            return False
        try:
            header = _header(open_file(path))
        except (PictureError, OSError):
            return False
        return header.is_live or (header.duration is not None and header.duration <= LIVE)

    def open(self, file: Source, member: str) -> Bytes:
        if (found := TIME.fullmatch(member)) is None:
            raise MissingMember("frames are called #t=SECONDS")
        at, header = Fraction(found[1]), _header(file)
        if header.duration is not None and at > header.duration + SLACK:  # which may be wrong
            _decoded(file, at)
        return header.frame(file, at)


@dataclass(frozen=True, slots=True)
class _Header:
    """What the header of a film says: its duration, and what holds of all frames."""

    duration: Fraction | None
    taken: datetime | None
    facts: Record
    shape: Fraction
    is_live: bool

    @classmethod
    def of(cls, film: "Film") -> "_Header":
        return cls(film.duration, film.taken(), film.facts(), film.shape, film.is_live)

    def frame(self, file: Source, at: Fraction, frame: "VideoFrame | None" = None) -> Frame:
        from vlmkit.io.video.film import at_time

        fields = {"time": float(at), **at_time(self.taken, float(at)), **self.facts}
        return Frame(file, fields, at, _Kept(frame, self.shape) if frame else None)


@lru_cache(maxsize=64)
def _header(file: Source) -> _Header:
    from vlmkit.io.video.film import Film

    with Film(file) as film:
        return _Header.of(film)


def _decoded(file: Source, at: Fraction) -> "tuple[VideoFrame, Fraction]":
    """A frame that was not kept, and the shape of its pixels. Raises PictureError."""
    from vlmkit.io.video.film import Film
    from vlmkit.io.video.frames import frames_at, listed

    with Film(file) as film:
        for _, frame in frames_at(film, listed([at]), SLACK):
            return frame, film.shape
        film.check()
    raise MissingMember("the film ends before that time")


def _upright(frame: "VideoFrame", shape: Fraction, size: int | None) -> "tuple[Image, int, int]":
    """The picture as it is to be seen, its pixels square, and its width and height without `size`."""
    from PIL import Image

    width, height = max(1, round(frame.width * shape)), frame.height
    scale = min(1.0, MARGIN * size / min(width, height)) if size else 1.0
    shown = frame.reformat(math.ceil(width * scale), math.ceil(height * scale), "rgb24", interpolation="AREA")
    image = shown.to_image()
    quarters = round(frame.rotation / 90) % 4
    if quarters:
        image = image.transpose(Image.Transpose[f"ROTATE_{90 * quarters}"])
    return image, *((height, width) if quarters % 2 else (width, height))


def _chosen(file: Source, choice: Choice) -> Iterator[tuple[str, Frame]]:
    """The frames of a choice by name, then PictureError for what could not be read."""
    from vlmkit.io.video.film import Film, film_errors
    from vlmkit.io.video.frames import frames_at, scenes

    with Film(file) as film, film_errors():
        header = _Header.of(film)
        if choice.every is not None:
            found = frames_at(film, _wanted(film, Fraction(str(choice.every)), choice.frames))
        else:
            found = ((_shortest(time, (frame.duration or 0) * film.base), frame) for time, frame in scenes(film))
        frames: Iterable[Frame] = (header.frame(file, at, frame) for at, frame in found)
        if choice.every is None and choice.frames is not None:
            frames = _spread(list(frames), choice.frames)
        last = Fraction(-1)
        for frame in frames:
            if frame.at > last:
                last = frame.at
                yield f"t={_decimal(frame.at)}", frame
        if last < 0:
            raise PictureError(": ".join(["no frame of it can be decoded", *film.damage]))
        film.check()


def _wanted(film: "Film", step: Fraction, most: int | None) -> Callable[[Fraction], Fraction | None]:
    """The multiples of `step`, or where those are more than `most` the middles of so many parts of the film."""
    from vlmkit.io.video.frames import grid, listed, measured

    if most is None:
        return grid(step)
    duration = film.duration or measured(film)
    if duration // step < most:
        return grid(step)
    digits = max(0, 1 - math.floor(math.log10(duration / most)))
    return listed([round(duration * (2 * number + 1) / (2 * most), digits) for number in range(most)])


def _spread(frames: list[Frame], most: int) -> list[Frame]:
    """`most` of the frames, evenly."""
    if len(frames) <= most:
        return frames
    return [frames[(2 * number + 1) * len(frames) // (2 * most)] for number in range(most)]


def _shortest(time: Fraction, duration: Fraction) -> Fraction:
    """The decimal with the fewest digits in the first thousandth of a second of a frame, or in its first half."""
    limit = min(duration / 2 or FINEST, FINEST)
    for digits in range(10):
        found = Fraction(math.ceil(max(time, Fraction(0)) * 10**digits), 10**digits)
        if found - time < limit or found == time:
            break
    return found


def _decimal(time: Fraction) -> str:
    return f"{float(time):.9f}".rstrip("0").rstrip(".")
