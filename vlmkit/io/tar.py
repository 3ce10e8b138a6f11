"""Tar files: their members, also those of tar files inside, are parts of the file that are opened again by path."""

import io
import posixpath
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import IO, NamedTuple, cast

from vlmkit.io.sources import MAX_BYTES, Bytes, MissingMember, PictureError, Source

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
COMPRESSED_TAR = "a compressed tar, whose members cannot be opened one by one; unpack it to .tar first"
MAX_DEPTH = 8  # tar files in tar files
MAX_LINKS = 40  # one behind the other, as the kernel has it
BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE  # a tar ends in two blocks of zeros or more, up to a multiple of that, or of one for tapes
TAPE_RECORDS = [1 << bits for bits in range(17, 21)]
NOT_FILES = (*tarfile.SUPPORTED_TYPES, b"V", b"D")  # GNU's labels and lists of folders; others are files, by POSIX
ZEROS = bytes(1 << 20)
CHECKSUM = re.compile(rb" *[0-7]+[ \0]*")
EXTENDED = (b"x", b"g", b"X", b"L", b"K")  # headers whose data, such as long names, are read at once
MAX_EXTENDED = 1 << 20  # bytes
LISTED = 1 << 23  # members whose places are kept: 256 MB


class Sparse(NamedTuple):
    """A member stored without its zeros; `parts` are (position in the member, offset in the file, bytes)."""

    path: str
    parts: tuple[tuple[int, int, int], ...]
    size: int
    mtime: float

    def read(self) -> bytes:
        if self.size > MAX_BYTES:
            raise PictureError(f"{self.size} bytes are more than a picture has (the limit is 1 GiB)")
        data = bytearray(self.size)
        for position, offset, size in self.parts:
            data[position : position + size] = Source(self.path, offset, size, self.mtime).read()
        if len(data) != self.size:
            raise PictureError("its sparse map is damaged")
        return bytes(data)


class Unreadable(NamedTuple):
    """A member that is named, but cannot be read for a `reason`."""

    reason: str
    size: int = 0
    mtime: float | None = None

    def read(self) -> bytes:
        raise PictureError(self.reason)


class Passing(NamedTuple):
    """A member of a tar that comes once from beginning to end, at `place`."""

    stream: IO[bytes]
    place: Source | Sparse

    @property
    def size(self) -> int:
        return self.place.size

    @property
    def mtime(self) -> float:
        return self.place.mtime

    def read(self) -> bytes:
        place = self.place
        parts = place.parts if isinstance(place, Sparse) else ((0, place.offset, place.size),)
        data = bytearray(self.size)
        for position, offset, size in parts:
            self.stream.seek(offset)
            data[position : position + size] = self.stream.read(size)
        if len(data) != self.size:
            raise PictureError("the file ends too early, or its sparse map is damaged")
        return bytes(data)


class TarReader:
    """The regular members of an uncompressed tar, and links to them under the names of the links."""

    separator = "/"
    holds_files = True

    def members(self, file: Source) -> Iterator[tuple[str, Bytes]]:
        """Relative names, without `.` and `..`, and sources in order: all that can be read, also behind damage.

        Only then PictureError is raised, unless the tar is whole. Names and places are held in memory, no contents.
        """
        try:
            with open(file.path, "rb") as stream:
                stream.seek(file.offset)
                if stream.read(6).startswith(COMPRESSED):
                    raise PictureError(COMPRESSED_TAR)
                headers = _Headers(stream, file)
                entries = _follow_links(file, headers)
        except OSError as error:
            raise PictureError(error.strerror or str(error)) from None
        yield from entries
        if headers.damage:
            raise PictureError(f"damaged tar file ({headers.damage})")

    def passing(self, stream: IO[bytes], offset: int, size: int) -> Iterator[tuple[str, Bytes]]:
        """As `members`, of a tar that comes once from beginning to end. Links are members that cannot be read."""
        stream.seek(offset)
        if stream.read(6).startswith(COMPRESSED):
            raise PictureError(COMPRESSED_TAR)
        file = Source("", offset, size, 0.0)
        headers = _Headers(stream, file)
        for member in headers:
            if member.islnk() or member.issym():
                yield _normal(member.name), Unreadable("a link, which is not followed in a tar that is read by URL")
            elif (source := _source(file, member)) is not None:
                yield _normal(member.name), Passing(stream, source)
        if headers.damage:
            raise PictureError(f"damaged tar file ({headers.damage})")

    def open(self, file: Source, member: str) -> Bytes:
        listing = LISTINGS.of(file)
        if (found := listing.find(member)) is not None:
            return found
        raise (
            PictureError(f"not found, as its tar cannot be read whole: {listing.damage}")
            if listing.damage
            else MissingMember
        )


class _Headers:
    """The headers of a tar in order; behind damage from the next one on whose checksum is right, as GNU tar has it.

    In the end `damage` says what could not be read: a place without header, zeros that are not the end, no end. It is
    empty for a tar that is whole, or several of them one behind the other.
    """

    def __init__(self, stream: IO[bytes], file: Source) -> None:
        self.damage = ""
        self._places = 0
        self._stream, self._start, self._end = stream, file.offset, file.offset + file.size
        self._tar = tarfile.TarFile(fileobj=io.BytesIO(ZEROS[:BLOCK]), encoding="utf-8")  # what parsing needs to know
        self._tar.fileobj = stream

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        part = at = self._start
        ended = False
        try:
            while at < self._end:
                if member := self._parse(at):
                    at = self._tar.offset
                    if at > self._end and (missing := _data_end(member) - self._end) > 0:
                        self._add(f"unexpected end of data inside {member.name}: {missing} bytes are missing")
                        ended = True
                    yield member
                    continue
                found, has_zeros_only = self._next_header(at)
                size, ended = found - at, found == self._end
                if has_zeros_only and _is_padding(size, found - part, is_last=ended):
                    part = found
                else:
                    what = "zeros" if has_zeros_only else "bytes that are no member"
                    self._add(f"{size} {what} at byte {at - self._start}")
                at = found
            if not ended:
                self._add("unexpected end of data: the blocks that mark the end are missing")
        except OSError as error:
            self._add(error.strerror or str(error))
        if self._places > 1:
            self.damage += f", and at {self._places - 1} more"

    def _add(self, damage: str) -> None:
        self.damage = self.damage or damage
        self._places += 1

    def _parse(self, at: int) -> tarfile.TarInfo | None:
        """The header at byte `at`, with what extends it; None if it is none. Moves `_tar.offset` behind its data."""
        self._stream.seek(at)
        try:
            if (block := self._stream.read(BLOCK))[156:157] in EXTENDED and _parse_block(block).size > MAX_EXTENDED:
                return None
            self._stream.seek(at)
            member = tarfile.TarInfo.fromtarfile(self._tar)
        except (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError):
            return None
        return member if member.size >= 0 and self._tar.offset > at else None

    def _next_header(self, at: int) -> tuple[int, bool]:
        """Where behind the block at `at` the next header begins, else the end; and whether zeros alone stand before."""
        self._stream.seek(at)
        block = self._stream.read(min(BLOCK, self._end - at))
        has_zeros_only, at = not block.strip(b"\0"), at + len(block)
        while chunk := self._stream.read(min(len(ZEROS), self._end - at)):
            if chunk != ZEROS[: len(chunk)]:
                for start in range(0, len(chunk), BLOCK):
                    block = chunk[start : start + BLOCK]
                    if CHECKSUM.fullmatch(block, 148, 156) and _is_header(block):
                        return at + start, has_zeros_only
                    has_zeros_only = has_zeros_only and not block.strip(b"\0")
            at += len(chunk)
        return self._end, has_zeros_only


def _parse_block(block: bytes) -> tarfile.TarInfo:
    return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")


def _is_header(block: bytes) -> bool:
    try:
        return bool(_parse_block(block))
    except (tarfile.TarError, ValueError):
        return False


def _is_padding(zeros: int, size: int, *, is_last: bool) -> bool:
    """Whether so many zeros are the end of a tar that has `size` bytes with them, not what was never written."""
    if not is_last:
        return 2 * BLOCK <= zeros <= RECORD + BLOCK and size % RECORD == 0
    return zeros <= RECORD + BLOCK or any(size % record == 0 and zeros <= record + BLOCK for record in TAPE_RECORDS)


def _is_file(member: tarfile.TarInfo) -> bool:
    return member.isreg() or member.type not in NOT_FILES


def _data_end(member: tarfile.TarInfo) -> int:
    size = member.size if member.sparse is None else sum(length for _, length in _stored(member))
    return member.offset_data + (size if _is_file(member) else 0)


def _stored(member: tarfile.TarInfo) -> list[tuple[int, int]]:
    """(position, bytes) of what is stored of a sparse member."""
    return cast(list[tuple[int, int]], member.sparse)


def _source(file: Source, member: tarfile.TarInfo) -> Source | Sparse | None:
    """Where the data of `member` are; None without, as for links, and where they are cut off.

    Of a tar inside that is cut off, what is there.
    """
    offset, size, mtime = member.offset_data, member.size, float(member.mtime)
    room = file.offset + file.size - offset
    if not _is_file(member) or (_data_end(member) > offset + room and not is_tar_name(member.name)):
        return None
    if member.sparse is None:
        return Source(file.path, offset, min(size, room), mtime)
    parts = []
    for position, length in _stored(member):
        parts.append((position, offset, length))
        offset += length
    return Sparse(file.path, tuple(parts), size, mtime)


def _follow_links(file: Source, members: Iterable[tarfile.TarInfo]) -> list[tuple[str, Bytes]]:
    """Names and sources of the files among `members`, and of the links: of what a link leads to."""
    files: dict[str, Bytes] = {}
    links: dict[str, str] = {}
    entries: list[tuple[str, Bytes | None]] = []
    for member in members:
        name = _normal(member.name)
        source: Bytes | None = _source(file, member)
        if member.islnk():
            source = files.get(_normal(member.linkname))  # the latest before it, if a name comes twice
        if source is not None:
            files[name] = source
            links.pop(name, None)
        elif member.islnk() or member.issym():
            folder = "" if member.islnk() else posixpath.dirname(name)
            links[name] = _normal(posixpath.join("/", folder, member.linkname))
            files.pop(name, None)
        else:
            continue
        entries.append((name, source))
    return [(name, source or _target(name, files, links)) for name, source in entries]


def _target(name: str, files: dict[str, Bytes], links: dict[str, str]) -> Bytes:
    """The file that the link `name` leads to, also by way of links to folders; nothing outside the tar."""
    end = name
    for _ in range(MAX_LINKS):
        folders = [end[: mark.start()] for mark in re.finditer("/|$", end)]
        link = next((folder for folder in folders if folder in links), None)
        if link is None:
            break
        end = _normal("/" + links[link] + end[len(link) :])
    return files.get(end) or Unreadable(f"a link to {end}, which the tar file does not hold")


def _normal(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")


class _Listing:
    """Where the members of a tar are, those of tars inside too, in 32 bytes each. `damage` is empty for a whole one."""

    def __init__(self, tar: Source) -> None:
        import numpy as np

        self.damage = ""
        self._path = tar.path
        self._others: dict[str, Bytes] = {}  # what is not one part of the file
        fields = [("key", "i8"), ("offset", "i8"), ("size", "i8"), ("mtime", "f8")]
        self._places = np.fromiter(self._walk(tar, "", 1), fields)
        self._places.sort(order="key", kind="stable")

    def __len__(self) -> int:
        return len(self._places)

    def _walk(self, tar: Source, prefix: str, depth: int) -> Iterator[tuple[int, int, int, float]]:
        try:
            for name, source in TarReader().members(tar):
                path = prefix + name
                if isinstance(source, Source):
                    self._others.pop(path, None)
                    yield hash(path), source.offset, source.size, source.mtime
                    if is_tar_name(name) and depth < MAX_DEPTH:
                        yield from self._walk(source, f"{path}/", depth + 1)
                else:
                    self._others[path] = source
        except PictureError as error:
            self.damage = self.damage or str(error)

    def find(self, member: str) -> Bytes | None:
        """The member of that name, the last one if there are several."""
        if (other := self._others.get(member)) is not None:
            return other
        row = int(self._places["key"].searchsorted(hash(member), "right")) - 1
        if row < 0 or self._places[row]["key"] != hash(member):
            return None
        _, offset, size, mtime = self._places[row].tolist()
        return Source(self._path, offset, size, mtime)


class _Listings:
    """The listings of the tars that were opened last, so that members come in any order and each tar is read once."""

    def __init__(self) -> None:
        self._held: OrderedDict[Source, _Listing] = OrderedDict()
        self._lock = Lock()

    def of(self, tar: Source) -> _Listing:
        with self._lock:
            if tar not in self._held:
                self._held[tar] = _Listing(tar)
                while len(self._held) > 1 and sum(map(len, self._held.values())) > LISTED:
                    self._held.popitem(last=False)
            self._held.move_to_end(tar)
            return self._held[tar]


LISTINGS = _Listings()


def is_tar_name(name: str) -> bool:
    return name.lower().endswith(".tar")


def is_compressed_tar_name(name: str) -> bool:
    return name.lower().endswith(COMPRESSED_SUFFIXES)
