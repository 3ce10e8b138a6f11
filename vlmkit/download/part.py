"""A file on its way: `.NAME.part`, and a journal of the stretches of it that have arrived.

A stretch is written before it is noted, so whatever the journal holds is there after a SIGKILL; what a power cut lost
is found by the checksum.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vlmkit.records import loads


class TransferError(Exception):
    """This file could not be brought; the text says why."""


@dataclass(frozen=True, slots=True)
class Version:
    """What a server says of a file: its size in bytes, and the validator (RFC 9110, 8.8) that tells versions apart."""

    size: int
    validator: str | None


class Part:
    """The unfinished form of the file `path`. Only one process at a time can have it open.

    `version` is None until `begin`, and for what cannot be resumed.
    """

    def __init__(self, path: Path) -> None:
        self._target = path
        self._path = path.with_name(f".{path.name}.part")
        self._notes = path.with_name(f".{path.name}.part.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise TransferError("another run is fetching it") from None
        self._journal: IO[bytes] | None = None
        self._have: list[tuple[int, int]] = []
        self.version: Version | None = None
        self._read()

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_: object) -> None:
        """What cannot be resumed is removed, the rest stays for the next run."""
        if self.version is None and self._path.exists():
            self.reset()
            self._path.unlink()
        if self._journal is not None:
            self._journal.close()
        os.close(self._file)

    def _read(self) -> None:
        """Take up what an earlier run left; a torn last line is the end of it."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            lines = self._notes.read_bytes().splitlines()
            first = loads(lines[0]) if lines else {}
            self.version = Version(first["size"], first["validator"])
            self._journal = open(self._notes, "ab", buffering=0)  # noqa: SIM115 (closed by __exit__)
            self._journal.write(b"\n")  # after a torn line
            for line in filter(None, lines[1:]):
                start, end = loads(line)
                self._have.append((start, end))

    def begin(self, version: Version) -> None:
        """From now on stretches are noted. Raises TransferError where the disk is too small."""
        self.check_room(version.size)
        os.truncate(self._file, version.size)
        self._journal = open(self._notes, "wb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._note({"size": version.size, "validator": version.validator})
        self.version = version

    def check_room(self, size: int) -> None:
        """Raise TransferError where the disk has no room for `size` bytes."""
        free = shutil.disk_usage(self._target.parent).free
        if size > free:
            raise TransferError(f"it has {size:,} bytes, and the disk has room for {free:,}")

    def reset(self) -> None:
        """Forget what has arrived."""
        if self._journal is not None:
            self._journal.close()
        self._notes.unlink(missing_ok=True)
        os.truncate(self._file, 0)
        self._journal, self.version, self._have = None, None, []

    def write(self, at: int, data: bytes) -> None:
        """Bytes that belong at `at`. Threads may write at the same time."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._file, view, at + len(data) - len(view))
            view = view[done:]
        if self._journal is not None:
            self._note([at, at + len(data)])

    def _note(self, value: object) -> None:
        from orjson import dumps

        assert self._journal is not None
        self._journal.write(dumps(value) + b"\n")

    def gaps(self, piece: int) -> Iterator[tuple[int, int]]:
        """The stretches [start, end) that have not arrived yet, none longer than `piece` bytes."""
        assert self.version is not None
        at = 0
        for start, end in [*sorted(self._have), (self.version.size, self.version.size)]:
            while at < start:
                yield at, min(at + piece, start)
                at = min(at + piece, start)
            at = max(at, end)

    def arrived(self) -> int:
        """How many bytes were there when this run began."""
        assert self.version is not None
        return self.version.size - sum(end - start for start, end in self.gaps(self.version.size or 1))

    def finish(self, digest: str | None) -> str:
        """The file gets its name; returns its SHA-256. Raises TransferError where `digest` is not the file's."""
        found = check_digest(self._path, digest)
        if isinstance(found, TransferError):
            self.reset()
            raise found
        os.fsync(self._file)
        os.replace(self._path, self._target)
        self._notes.unlink(missing_ok=True)
        return found


def check_digest(path: Path, digest: str | None) -> str | TransferError:
    """The SHA-256 of a file, or how it differs from `digest` (`sha256:…` or `md5:…`, if known)."""
    kind, _, expected = (digest or "sha256:").partition(":")
    sums = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", kind}}
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            for one in sums.values():
                one.update(chunk)
    if expected and sums[kind].hexdigest() != expected:
        return TransferError(f"wrong {kind.upper()}: {sums[kind].hexdigest()}, not {expected}")
    return sums["sha256"].hexdigest()
