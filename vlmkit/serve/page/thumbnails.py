"""Small and large forms of pictures as JPEG, kept in the cache folder up to some size."""

import contextlib
import io
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.io.files import atomic_write
from vlmkit.io.images import middle, open_picture
from vlmkit.io.sources import Bytes, content_hash

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 512 << 20  # of the cache
KEPT = 0.8  # of them, after the oldest went
USED_SECONDS = 86_400.0  # after which a file that is read counts as used again
RATIO = 2  # of sides in a grid of squares


@dataclass(frozen=True, slots=True)
class Form:
    """`side` in pixels: that of the shorter side of a picture for the grid, else that of the longer one."""

    side: int
    for_grid: bool
    quality: int


FORMS = {"thumbnail": Form(360, True, 78), "medium": Form(1024, False, 85), "large": Form(1800, False, 88)}


def etag_of(path: str, source: Bytes, form: str) -> str:
    """What differs between two forms, two files, and two states of a file."""
    facts = f"{path}\0{source}\0{source.size}\0{source.mtime}\0{FORMS[form]}"
    return content_hash(facts.encode(errors="surrogatepass"))


class Thumbnails:
    """The cache in `folder`, from which the files go that were not used for longest."""

    def __init__(self, folder: Path, most: int = MOST_BYTES) -> None:
        self._folder, self._most = folder, most
        self._lock = threading.Lock()
        self._bytes: int | None = None

    def get(self, name: str, source: Bytes, form: str) -> bytes:
        """The picture `source` as JPEG, kept under `name` (see `etag_of`). Raises PictureError."""
        file = self._folder / name[:2] / f"{name}.jpg"
        with contextlib.suppress(OSError):
            data = file.read_bytes()
            if time.time() - file.stat().st_mtime > USED_SECONDS:
                os.utime(file)
            if data:
                return data
        data = made(source, FORMS[form])
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file, durable=False) as out:
                out.write(data)
            self._count(len(data))
        return data

    def _count(self, size: int) -> None:
        with self._lock:
            if self._bytes is None:
                self._bytes = sum(size for _, size, _ in self._files())
            else:
                self._bytes += size
            if self._bytes > self._most:
                self._prune()

    def _prune(self) -> None:
        files = sorted(self._files(), reverse=True)
        total = 0
        for _, size, path in files:
            total += size
            if total > KEPT * self._most:
                total -= size
                with contextlib.suppress(OSError):
                    os.unlink(path)
        self._bytes = total

    def _files(self) -> list[tuple[float, int, str]]:
        """When each was used, its bytes and its path."""
        found = []
        for folder, _, names in os.walk(self._folder):
            for name in names:
                with contextlib.suppress(OSError):
                    facts = os.stat(path := os.path.join(folder, name))
                    found.append((facts.st_mtime, facts.st_size, path))
        return found


def made(source: Bytes, form: Form) -> bytes:
    """The picture as JPEG. Raises PictureError."""
    image, _, _ = open_picture(source, form.side)
    image = for_grid(image, form.side) if form.for_grid else _within(image, form.side)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=form.quality, progressive=not form.for_grid)
    return data.getvalue()


def for_grid(image: "Image", side: int) -> "Image":
    """The middle of a picture, no side more than twice the other, the shorter one of at most `side` pixels."""
    image = middle(image, RATIO)
    scale = min(1.0, side / min(image.size))
    return _resized(image, scale)


def _within(image: "Image", side: int) -> "Image":
    return _resized(image, min(1.0, side / max(image.size)))


def _resized(image: "Image", scale: float) -> "Image":
    from PIL.Image import Resampling

    if scale >= 1:
        return image
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Resampling.LANCZOS, reducing_gap=2.0)
