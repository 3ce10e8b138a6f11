"""Archives unpacked: regular files alone, and none outside the folder."""

import posixpath
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

from vlmkit.download.part import TransferError
from vlmkit.records import Record

COPY_BYTES = 1 << 20


class _Member(NamedTuple):
    name: str
    size: int
    stream: IO[bytes]


def unpack(archive: Path, folder: Path) -> Iterator[Record]:
    """Unpack a zip (a wheel) or a tar, compressed or not, into `folder`; yields {path, bytes, crc32} of each file.

    Raises TransferError for a member that is a link or a device, or that would lie outside of `folder` (then what stood
    before it is there), and where the disk is too small or the archive damaged.
    """
    with ExitStack() as stack:
        try:
            for member in _zip(archive, stack) if zipfile.is_zipfile(archive) else _tar(archive, stack):
                yield _write(member, folder)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
            raise TransferError(f"{archive.name} is damaged ({error})") from None
        except OSError as error:
            raise TransferError(f"{archive.name} cannot be unpacked ({error.strerror or error})") from None


def _zip(archive: Path, stack: ExitStack) -> Iterator[_Member]:
    opened = stack.enter_context(zipfile.ZipFile(archive))
    members = opened.infolist()
    for info in members:
        kind = info.external_attr >> 28  # the file type of st_mode, where the zip is from Unix
        if kind not in (0, 4, 8):
            raise _refused(archive, info.filename, "a link or a device")
        _check_name(archive, info.filename)
    needed, free = sum(info.file_size for info in members), shutil.disk_usage(archive.parent).free
    if needed > free:
        raise TransferError(f"{archive.name} unpacks to {needed:,} bytes, and the disk has room for {free:,}")
    for info in members:
        if not info.is_dir():
            with opened.open(info) as stream:
                yield _Member(info.filename, info.file_size, stream)


def _tar(archive: Path, stack: ExitStack) -> Iterator[_Member]:
    opened = stack.enter_context(tarfile.open(archive, "r:*"))  # noqa: SIM115 (closed by stack)
    while info := opened.next():
        opened.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
        if info.isdir():
            continue
        if not info.isreg():
            raise _refused(archive, info.name, "a link or a device")
        _check_name(archive, info.name)
        stream = opened.extractfile(info)
        assert stream is not None
        yield _Member(info.name, info.size, stream)


def _check_name(archive: Path, name: str) -> None:
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise _refused(archive, name, "outside of the folder")


def _refused(archive: Path, name: str, why: str) -> TransferError:
    return TransferError(f"{archive.name} has a member {name!r} that is {why}, which is refused")


def _write(member: _Member, folder: Path) -> Record:
    name = posixpath.normpath(member.name)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if folder.resolve() not in path.resolve().parents:  # through a link that was there before
        raise TransferError(f"{path} leads out of {folder}")
    size, crc = 0, 0
    with open(path, "wb") as file:
        while data := member.stream.read(COPY_BYTES):
            file.write(data)
            size += len(data)
            crc = zlib.crc32(data, crc)
    if size != member.size:
        raise EOFError(f"{member.name} ends too early")
    return {"path": name, "bytes": size, "crc32": f"{crc:08x}"}
