"""What a path stands for: a file, a member of a container such as a tar file, or a URL. Only this module decides that.

A new kind of container is one file with a `Reader` and one line in READERS; packages add theirs by entry points of the
group `vlmkit.readers`, whose name is the suffix without its dot (`pdf = "package.module:PdfReader"`).
"""

import base64
import errno
import importlib.util
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, NamedTuple, Protocol, cast
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from vlmkit.io.kinds import DECODED, is_decoded
from vlmkit.io.registry import Registry
from vlmkit.io.similar import no_such_file

FILMS = "3g2 3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv qt vob webm wmv"
READERS = Registry(
    "vlmkit.readers",
    {
        "pdf": "vlmkit.io.pdf:PdfReader",
        "tar": "vlmkit.io.tar:TarReader",
        **dict.fromkeys(FILMS.split(), "vlmkit.io.video.reader:VideoReader"),
    },
)

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
PICTURE_SUFFIXES |= {".avif", ".heic", ".heif", ".hif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx"}
# Known without looking for plugins, which takes 50 ms.
OTHER_SUFFIXES = {".jsonl", ".json", ".safetensors", ".txt", ".csv", ".tsv", ".html", ".npy", ".md"}
NOT_CONTAINERS = PICTURE_SUFFIXES | DECODED | OTHER_SUFFIXES
NO_PICTURES = OTHER_SUFFIXES | {f".{suffix}" for suffix in READERS.builtin}
SMALLEST = 64  # bytes of a document or film: fewer are a header alone
MAX_BYTES = 1 << 30  # of one picture: it is read into memory
REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# How files of pictures begin; of WebP and of HEIC and AVIF what stands first in the container.
# fmt: off
MAGIC = (
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cJXL", b"\xff\x0a", b"<svg", b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0",
)
# fmt: on


class PictureError(Exception):
    """This picture cannot be used; the message says why, `remedy` what to do, unless it is to check the file."""

    remedy = ""


class MissingMember(PictureError):
    """The container is intact and does not hold this member; the message says more where there is more to say."""


class NoPictures(PictureError):
    """There are no pictures in this document or film, nor can there have been: in a folder it is no INPUT."""


class UnreadContainer(PictureError):
    """The container at `path` could not be read whole, so whether it holds this member is unknown."""

    def __init__(self, path: str, error: PictureError) -> None:
        super().__init__(str(error))
        self.path, self.remedy = path, error.remedy


class MissingExtra(PictureError):
    """The file is not looked at without an extra of vlmkit."""

    remedy = "run it again with the package"

    def __init__(self, extra: str) -> None:
        super().__init__(f"needs one more package: pip install 'vlmkit[{extra}]'")


class Bytes(Protocol):
    """A picture as it is stored: `size` in bytes, `mtime` in seconds since 1970 where that is known."""

    @property
    def size(self) -> int: ...

    @property
    def mtime(self) -> float | None: ...

    def read(self) -> bytes:
        """All of it. Raises PictureError."""


class Source(NamedTuple):
    """A file, or the part of one from byte `offset` on. `size` in bytes, `mtime` in seconds since 1970."""

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
    """A picture from standard input, or one that a record holds itself."""

    data: bytes
    mtime: float | None = None

    def __str__(self) -> str:
        return f"a picture of {self.size} bytes"

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self) -> bytes:
        return self.data


class Reader(Protocol):
    """Reads one kind of container. The path of a member is that of the container, `separator` and the member's name.

    `separator` is `/` (`shard.tar/a.jpg`) or `#` (`doc.pdf#page=3`, `clip.mp4#t=12.5`). With `holds_files` members are
    files of any kind, distinguished by name, and those of one stem are one sample, as in webdataset; without
    it each member is a picture. What is returned as `Bytes` should be picklable. It is made without arguments.
    One that needs a package that may be missing has `requires`: the name it is imported by, and our extra.
    """

    separator: str
    holds_files: bool

    def members(self, file: Source) -> Iterator[tuple[str, Bytes]]:
        """Names and sources in order: all that can be read, then PictureError where the container is damaged."""

    def open(self, file: Source, member: str) -> Bytes:
        """One member by name. Raises MissingMember, or PictureError where the container is damaged."""


class StreamReader(Reader, Protocol):
    """A reader of containers that may also come by URL, once from beginning to end."""

    def passing(self, stream: IO[bytes], offset: int, size: int) -> Iterator[tuple[str, Bytes]]:
        """As `members`, of `size` bytes of `stream` from `offset` on, which is sought forward alone.

        What a source reads is there until the next one is asked for.
        """


class Fetcher(Protocol):
    """Fetches pictures by URL; `io.http.HttpClient` is one."""

    def fetch(self, url: str) -> Bytes: ...


def open_source(path: str, web: Fetcher | None = None) -> Bytes:
    """The source of the picture at `path`; a URL is fetched with `web`. Raises PictureError."""
    if is_url(path):
        if web is None:
            raise PictureError("this command does not fetch pictures by URL")
        return web.fetch(path)
    if is_data(path):
        return _decoded(path)
    if is_remote(path):
        raise PictureError("only http and https URLs are fetched, and of others shards (.tar)")
    try:
        return open_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        try:
            if (member := _open_member(path)) is not None:
                return member
        except MissingMember as missing:
            if str(missing):
                raise PictureError(str(missing)) from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            reason = "a broken symbolic link" if os.path.islink(path) else no_such_file(path)
        raise PictureError(reason) from None


def file_facts(source: Bytes) -> dict[str, Any]:
    """`mtime`, `bytes` and `ctime` (when anything about the file was last changed) of a source, where they are known.

    Take them before reading: what is changed meanwhile is then noticed the next time. Raises PictureError.
    """
    try:
        path = getattr(source, "path", None)
        ctime = os.stat(path).st_ctime if path else None
    except OSError as error:
        raise PictureError(error.strerror or str(error)) from None
    facts = {"mtime": source.mtime, "bytes": source.size, "ctime": ctime}
    return {name: fact for name, fact in facts.items() if fact is not None}


def content_hash(data: bytes) -> str:
    """The fingerprint of a file's bytes: 32 hex digits of XXH3."""
    from xxhash import xxh3_128_hexdigest

    return xxh3_128_hexdigest(data)


def open_file(path: str) -> Source:
    """The file at `path`. Raises OSError, ValueError for an invalid name, PictureError unless it is a regular file."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise PictureError("not a regular file")
    return Source(path, 0, found.st_size, found.st_mtime)


def members(path: str) -> Iterator[tuple[str, Bytes]]:
    """Names and sources of what the container at `path` holds, in its order. Raises PictureError."""
    if (reader := reader_of(path)) is not None:
        try:
            yield from reader.members(open_file(path))
        except OSError as error:
            raise PictureError(error.strerror or str(error)) from None


def exists(path: str) -> bool:
    """Whether `path` is a URL, or something is there: a file, a folder, a link, a member of a container.

    True as well where a container is damaged and may hold it: opening it says so.
    """
    if is_uri(path) or os.path.lexists(path):
        return True
    try:
        return not is_gone(path)
    except UnreadContainer:
        return True


def is_gone(path: str) -> bool:
    """Whether certainly nothing is at `path` any more; False without permission.

    Raises UnreadContainer for what is not found in a container that could not be read whole.
    """
    if is_uri(path):
        return False
    try:
        os.stat(path)
        return False
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # what no name can be is not there
            return False
    try:
        return _open_member(path) is None
    except MissingMember:
        return True


def _open_member(path: str) -> Bytes | None:
    """The member that `path` names; None if `path` does not lead through a container.

    Raises MissingMember, or UnreadContainer where the container is damaged.
    """
    for mark in re.finditer("[/#]", path):
        container = path[: mark.start()]
        try:
            file = open_file(container)
        except (OSError, ValueError, PictureError):
            continue
        try:
            if mark[0] == "#" and (extra := missing_extra(container)):
                raise MissingExtra(extra)
            if (reader := reader_of(container)) is not None and reader.separator == mark[0]:
                return _opened(reader, file, path[mark.end() :])
        except MissingMember:
            raise
        except PictureError as error:
            raise UnreadContainer(container, error) from None
    return None


def _opened(reader: Reader, file: Source, name: str) -> Bytes:
    """A member, or a part of one, as in `x.tar/clip.mp4#t=3`. Raises as `Reader.open`."""
    try:
        return reader.open(file, name)
    except MissingMember:
        member, _, part = name.rpartition("#")
        inner = reader_of(member) if reader.holds_files else None
        if inner is None or inner.separator != "#" or not isinstance(found := reader.open(file, member), Source):
            raise
        return inner.open(found, part)


def reader_of(name: str) -> Reader | None:
    """The reader for the suffix of `name`, ignoring case, of a URL that of its path; None if it is no container's, or
    what reads it is not installed (see `missing_extra`)."""
    suffix = _suffix(name)
    return None if _missing_extra(suffix) else _reader(suffix)


def missing_extra(name: str) -> str | None:
    """The extra of vlmkit that reads files called `name`, unless it is installed or none is needed."""
    return _missing_extra(_suffix(name))


def _suffix(name: str) -> str:
    return os.path.splitext(name.partition("?")[0] if is_url(name) else name)[1].lower()


@cache
def _reader(suffix: str) -> Reader | None:
    known = suffix[1:].isalnum() and suffix not in NOT_CONTAINERS and suffix[1:] in READERS
    return READERS.load(suffix[1:])() if known else None


@cache
def _missing_extra(suffix: str) -> str | None:
    package, extra = getattr(_reader(suffix), "requires", ("", None))
    return extra if package and importlib.util.find_spec(package) is None else None


def is_url(path: str) -> bool:
    return path[:8].lower().startswith(("http://", "https://"))


def is_remote(path: str) -> bool:
    """Whether this is a URL of any kind, such as https://… and s3://…"""
    return REMOTE.match(path) is not None


def shard_reader(path: str) -> "StreamReader | None":
    """The reader of the shard that the URL `path` leads to; None where it leads to something else."""
    reader = reader_of(path) if is_remote(path) else None
    return cast("StreamReader", reader) if hasattr(reader, "passing") else None


def file_path(url: str) -> str:
    """The path of a file: URL; a malformed one as it is, which names no file."""
    try:
        return unquote(urlsplit(url).path)
    except ValueError:
        return url


def is_data(path: str) -> bool:
    """Whether this is no name of a picture but the picture itself, as a data: URL."""
    return path[:5].lower() == "data:"


def is_uri(path: str) -> bool:
    return is_data(path) or is_remote(path)


def as_data(picture: bytes | str) -> str:
    """A picture, its bytes or these in base64, as a data: URL."""
    text = picture if isinstance(picture, str) else base64.b64encode(picture).decode()
    return f"data:image/*;base64,{text}"


def _decoded(url: str) -> Memory:
    head, _, data = url.partition(",")
    try:
        return Memory(base64.b64decode(data, validate=True) if head.endswith(";base64") else unquote_to_bytes(data))
    except ValueError:
        raise PictureError("its data: URL is not in base64") from None


def is_picture_name(name: str) -> bool:
    """Whether the suffix, in any case, is that of a picture that can be read."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in PICTURE_SUFFIXES or (suffix[1:].isalnum() and suffix not in NO_PICTURES and is_decoded(suffix[1:]))


def is_picture(head: bytes) -> bool:
    """Whether a stream that starts with `head` is a picture, by its magic number."""
    return (
        head.startswith(MAGIC)
        or head[4:8] == b"ftyp"
        or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace())
    )
