"""Pictures by URL, fetched into a folder: named by their URL, so what is there is not fetched again.

Files are written whole or not at all, so a run that was killed goes on where it stood. Hosts are asked for a few
pictures at a time each.
"""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from vlmkit.download.robots import refused
from vlmkit.images import open_picture
from vlmkit.sources import Memory, PictureError
from vlmkit.urls import Web

PER_HOST = 4  # pictures at a time
QUALITY = 95  # of a JPEG that was made smaller
SUFFIXES = {
    **{"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"},
    **{"AVIF": "avif", "HEIF": "heic", "JPEG2000": "jp2", "PPM": "ppm"},
}


class Picture(NamedTuple):
    """A picture as it is kept: its bytes, the suffix of their format, and its size in pixels, upright."""

    data: bytes
    suffix: str
    width: int
    height: int


class _Named:
    """A lock, or a semaphore, that lives as long as somebody uses it."""

    def __init__(self, places: int) -> None:
        self.places = threading.Semaphore(places)


class _Turns:
    """At most `places` at a time for each name."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._known: WeakValueDictionary[str, _Named] = WeakValueDictionary()
        self._lock = threading.Lock()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        with self._lock:
            mine = self._known.get(name)
            if mine is None:
                mine = self._known[name] = _Named(self._places)
        with mine.places:
            yield


class Fetcher:
    """Fetches pictures with `web`; the longest side has at most `longest` pixels, if that is told."""

    def __init__(self, web: Web, longest: int | None = None) -> None:
        self._web = web
        self._longest = longest
        self._hosts = _Turns(PER_HOST)
        self._urls = _Turns(1)

    def picture(self, url: str) -> Picture:
        """The picture at `url`: told by its content, decoded to see that it is whole. Raises PictureError."""
        with self._hosts.of(urlsplit(url).netloc.lower()):
            data = self._web.fetch(url, refused).read()
        return shrunk(data, self._longest)

    def into(self, folder: Path, url: str) -> tuple[Path, int, int]:
        """(file, width, height) of the picture at `url`, fetched into `folder` unless it is there.

        Raises PictureError.
        """
        with self._urls.of(url):
            found = kept(folder, url)
            if found is not None:
                return found
            picture = self.picture(url)
            path = folder / f"{key_of(url)}.{picture.suffix}"
            write_whole(path, picture.data)
            return path, picture.width, picture.height


def key_of(url: str) -> str:
    """The name of the file of the picture at `url`: 20 hex digits of its SHA-256."""
    return hashlib.sha256(url.encode()).hexdigest()[:20]


def kept(folder: Path, url: str) -> tuple[Path, int, int] | None:
    """(file, width, height) of the picture at `url`, if `folder` has it, whole."""
    for suffix in dict.fromkeys(SUFFIXES.values()):
        path = folder / f"{key_of(url)}.{suffix}"
        if path.exists():
            try:
                _, width, height = open_picture(Memory(path.read_bytes()), 1)
            except PictureError:
                return None
            return path, width, height
    return None


def shrunk(data: bytes, longest: int | None) -> Picture:
    """`data` as it is, or as a smaller JPEG where a side is longer than `longest` pixels. Raises PictureError."""
    from PIL import Image

    image, width, height = open_picture(Memory(data))
    if longest is not None and max(width, height) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=QUALITY)
        return Picture(out.getvalue(), "jpg", *image.size)
    with Image.open(io.BytesIO(data)) as opened:
        return Picture(data, SUFFIXES[opened.format or ""], width, height)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; of a crash of the machine, `kept` takes note."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PictureError(f"cannot be written: {error.strerror}") from None
