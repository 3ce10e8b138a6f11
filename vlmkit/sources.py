"""Where a picture's bytes are: a file, or a stretch of a tar file."""

import os
import stat
from dataclasses import dataclass
from typing import NamedTuple, Protocol

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
PICTURE_SUFFIXES |= {".avif", ".heic", ".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx"}

MAX_BYTES = 1 << 30  # of one picture: it is read whole
# How files of pictures begin; of WebP and of HEIC and AVIF what stands first in the container.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")


class PictureError(Exception):
    """This picture cannot be used; the text says why."""


class Bytes(Protocol):
    """A picture as it is stored: `size` in bytes, `mtime` in seconds since 1970 where that is known."""

    @property
    def size(self) -> int: ...

    @property
    def mtime(self) -> float | None: ...

    def read(self) -> bytes:
        """All of it. Raises PictureError."""


class Source(NamedTuple):
    """A file, or a stretch of a tar file. `size` in bytes, `mtime` in seconds since 1970."""

    path: str
    offset: int
    size: int
    mtime: float

    def __str__(self) -> str:
        return f"{self.path} at byte {self.offset}" if self.offset else self.path

    def read(self) -> bytes:
        if self.size > MAX_BYTES:
            raise PictureError(f"{self.size} bytes are more than a picture has (the limit is 1 GiB)")
        try:
            number = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            with open(number, "rb") as file:
                if not stat.S_ISREG(os.fstat(number).st_mode):
                    raise PictureError("not a regular file")
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise PictureError(error.strerror or str(error)) from None
        if len(data) < self.size:
            raise PictureError("the file ends too early")
        return data


@dataclass(frozen=True, slots=True)
class Memory:
    """A picture that came through a pipe."""

    data: bytes
    mtime: float | None = None

    def __str__(self) -> str:
        return f"a picture of {self.size} bytes"

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self) -> bytes:
        return self.data


def is_picture(head: bytes) -> bool:
    """Whether a stream that starts with `head` is a picture, by its magic number."""
    return (
        head.startswith(MAGIC)
        or head[4:8] == b"ftyp"
        or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace())
    )


def is_picture_name(name: str) -> bool:
    """Whether the extension, in any case, is that of a picture."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES
