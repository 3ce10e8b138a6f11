"""Where a picture's bytes are: a file, or a stretch of a tar file.

Tar files: their members, also those of tar files inside, as stretches that are opened again by path.
"""

import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
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


COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
MAX_DEPTH = 8  # tar files in tar files


def is_tar_name(name: str) -> bool:
    return name.lower().endswith(".tar")


def is_compressed_tar_name(name: str) -> bool:
    return name.lower().endswith(COMPRESSED_SUFFIXES)


def compressed_tar() -> PictureError:
    return PictureError("a compressed tar, whose members cannot be opened one by one; unpack it to .tar first")


def locate(path: str) -> Source:
    """The source of a picture by path; `/…/shard.tar/member.jpg` is a member of a tar file. Raises PictureError."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        member = _locate_member(path)
        if member is None:
            raise PictureError(_missing(path, error)) from None
        return member
    if not stat.S_ISREG(found.st_mode):
        raise PictureError("not a regular file")
    return Source(path, 0, found.st_size, found.st_mtime)


def _missing(path: str, error: OSError | ValueError) -> str:
    if not isinstance(error, FileNotFoundError):
        return getattr(error, "strerror", None) or str(error)
    return "a symbolic link to nothing" if os.path.islink(path) else "no such file"


def is_member(path: str) -> bool:
    """Whether `path` is that of a member of a tar file."""
    return not os.path.lexists(path) and _locate_member(path) is not None


def is_gone_member(path: str) -> bool:
    """Whether `path` was one of a tar's members and is no more; of a tar that is damaged nobody can say."""
    inside = _inside(path)
    if inside is None:
        return True
    found, whole = inside
    return found is None and whole


def _locate_member(path: str) -> Source | None:
    inside = _inside(path)
    return inside and inside[0]


def _inside(path: str) -> tuple[Source | None, bool] | None:
    """The member that `path` names, and whether its tar could be read to the end; None where there is no tar."""
    parts = path.split("/")
    for i, part in enumerate(parts[:-1], 1):
        tar = "/".join(parts[:i])
        if is_tar_name(part) and os.path.isfile(tar):
            found, whole = _members(tar, os.stat(tar).st_mtime_ns)
            return found.get("/".join(parts[i:])), whole
    return None


@lru_cache(maxsize=8)
def _members(tar: str, _mtime: int) -> tuple[dict[str, Source], bool]:
    found: dict[str, Source] = {}
    try:
        for name, source in _flat(locate(tar), "", 1):
            found[name] = source
    except PictureError:  # what stands before the damage can be opened
        return found, False
    return found, True


def _flat(tar: Source, prefix: str, depth: int) -> Iterator[tuple[str, Source]]:
    for name, source in members(tar):
        yield prefix + name, source
        if is_tar_name(name) and depth < MAX_DEPTH:
            yield from _flat(source, f"{prefix}{name}/", depth + 1)


def members(tar: Source) -> Iterator[tuple[str, Source]]:
    """Names and sources of the regular members of an uncompressed tar, in its order, in bounded memory.

    Names are relative, without `.` and `..`. Raises PictureError at the place where the tar is damaged.
    """
    end = tar.offset + tar.size
    try:
        with open(tar.path, "rb") as file:
            file.seek(tar.offset)
            if file.read(6).startswith(COMPRESSED):
                raise compressed_tar()
            file.seek(tar.offset)
            with tarfile.open(fileobj=file, mode="r:") as opened:
                while member := opened.next():
                    opened.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                    if member.offset_data + (member.size if member.isreg() else 0) > end:
                        raise PictureError(f"the tar file ends inside {member.name}")
                    if member.isreg() and member.sparse is None:
                        name = posixpath.normpath("/" + member.name).lstrip("/")
                        yield name, Source(tar.path, member.offset_data, member.size, float(member.mtime))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise PictureError(f"damaged tar file ({error})") from None
