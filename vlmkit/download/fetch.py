"""One file over HTTP, complete or not at all: ranges of it at the same time, and resumed where it was cut off.

By hand, since pooch and huggingface_hub do not check by ETag that half a file is still of the server's version, do not
fetch ranges at the same time, and connect to any address.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlmkit.io.http import FetchError, HttpClient, RetryLater, body
from vlmkit.io.records import dumps, loads

if TYPE_CHECKING:
    import httpx2

RANGE_BYTES = 16 << 20  # of one request
CONNECTIONS = 4  # for one file
TRIES = 4  # without progress
WRITE_BYTES = 256 << 10  # that are written, and noted, at once
SLOWEST = 1024  # bytes a second; a server that is slower for `timeout` seconds is given up

# Called with the number of bytes that have arrived, and of the file where that is known.
OnProgress = Callable[[int, int | None], None]


class Version(NamedTuple):
    """A version of a file on a server: size in bytes, and the validator (RFC 9110, 8.8) that another version lacks."""

    size: int
    validator: str | None


@dataclass(slots=True)
class ByteRange:
    """The bytes [start, end) that are still missing; `end` is None where the server did not send the size."""

    start: int
    end: int | None


class _Changed(FetchError):
    """The file changed on the server since a part of it was fetched."""


class PartialFile:
    """The unfinished form of the file `path`: `.NAME.part`, and a journal of the ranges of it that have arrived.

    A range is written before it is noted, so what the journal holds is there after a SIGKILL; what a power cut lost is
    found by the checksum. Only one process at a time can have it open. `version` is None before `begin`, and for what
    cannot be resumed, which is removed at the end of the `with` block.
    """

    def __init__(self, path: Path, on_progress: OnProgress = lambda arrived, size: None) -> None:
        self._target = path
        self._path = path.with_name(f".{path.name}.part")
        self._journal_path = path.with_name(f".{path.name}.part.jsonl")
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._arrived: list[tuple[int, int]] = []  # in earlier runs
        self._received = 0  # bytes, in all runs
        self.size: int | None = None
        self.version: Version | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise FetchError("another run is fetching it") from None
        self._journal = open(self._journal_path, "a+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._resume()

    def _resume(self) -> None:
        """Continue the partial file of an earlier run; an incomplete line of the journal is skipped."""
        self._journal.seek(0)
        first, *lines = self._journal.read().split(b"\n")
        with contextlib.suppress(ValueError, TypeError):
            version = Version(**loads(first))
            if os.fstat(self._file).st_size == version.size:
                self.version, self.size = version, version.size
                self._journal.write(b"\n")
        for line in lines if self.version else ():
            with contextlib.suppress(ValueError, TypeError):
                start, end = loads(line)
                self._arrived.append((start, end))
                self._received += end - start

    def __enter__(self) -> "PartialFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self.version is None and self._path.exists():
            self._path.unlink()
            self._journal_path.unlink(missing_ok=True)
        self._journal.close()
        os.close(self._file)

    def begin(self, version: Version) -> None:
        """Begin the file of that version and its journal. Raises FetchError where the disk is too small."""
        self.expect(version.size)
        os.truncate(self._file, version.size)
        self._journal.truncate(0)
        self._journal.write(dumps(version._asdict()))
        self.version = version

    def expect(self, size: int) -> None:
        """Set the size of the file in bytes. Raises FetchError where the disk has no room for them."""
        check_room(self._target.parent, size, "it has")
        self.size = size

    def reset(self) -> None:
        """Discard what has arrived."""
        self._journal.truncate(0)
        os.truncate(self._file, 0)
        self.version, self.size = None, None
        self._arrived, self._received = [], 0

    def write(self, start: int, data: bytes) -> None:
        """Write bytes from `start` on. Threads may write at the same time."""
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._file, view, start + len(data) - len(view)) :]
        with self._lock:
            if self.version is not None:
                self._journal.write(b"[%d,%d]\n" % (start, start + len(data)))
            self._received += len(data)
            self._on_progress(self._received, self.size)

    def missing(self, limit: int) -> Iterator[ByteRange]:
        """The ranges that had not arrived when this run began, none longer than `limit` bytes."""
        size = self.size or 0
        position = 0
        for start, end in [*sorted(self._arrived), (size, size)]:
            while position < start:
                yield ByteRange(position, min(position + limit, start))
                position = min(position + limit, start)
            position = max(position, end)

    def finish(self, digest: str | None) -> str:
        """Rename the complete file to `path`; returns its SHA-256. Raises FetchError where it is not `digest`."""
        try:
            found = check_digest(self._path, digest)
        except FetchError:
            self.reset()
            raise
        os.fsync(self._file)
        os.replace(self._path, self._target)
        self._journal_path.unlink(missing_ok=True)
        return found


def check_room(folder: Path, size: int, what: str) -> None:
    """Raise FetchError where the disk of `folder` has no room for `size` bytes; `what` begins the message."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise FetchError(f"{what} {size:,} bytes, and the disk has room for {free:,}")


def check_digest(path: Path, digest: str | None) -> str:
    """The SHA-256 of a file. Raises FetchError if it has not the `digest` (`sha256:…` or `md5:…`, if known)."""
    kind, _, expected = (digest or "sha256:").partition(":")
    sums = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", kind}}
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            for one in sums.values():
                one.update(chunk)
    if expected and sums[kind].hexdigest() != expected:
        raise FetchError(f"wrong {kind.upper()}: {sums[kind].hexdigest()}, not {expected}")
    return sums["sha256"].hexdigest()


def fetch(
    url: str,
    path: Path,
    client: HttpClient,
    *,
    size: int | None = None,
    digest: str | None = None,
    on_progress: OnProgress = lambda arrived, size: None,
) -> str:
    """Download `url` to `path`, completely or not at all; returns its SHA-256.

    `size` in bytes and `digest` (`sha256:…` or `md5:…`) are checked where they are known. Raises FetchError.
    """
    with PartialFile(path, on_progress) as part:
        transfer = _Transfer(url, part, client, size)
        try:
            transfer.run()
        except _Changed:
            part.reset()
            transfer.run()
        return part.finish(digest)


class _Transfer:
    """`url` into `part`, with several requests at the same time."""

    def __init__(self, url: str, part: PartialFile, client: HttpClient, size: int | None) -> None:
        self._url = url
        self._part = part
        self._client = client
        self._size = size
        self._stop = threading.Event()

    def run(self) -> None:
        self._stop.clear()
        if self._part.version is None:
            self._client.retry(self._probe, TRIES)
        if self._part.version is None:  # a server without ranges sent all of it
            return
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as pool:
            try:
                for done in [pool.submit(self._range, missing) for missing in self._part.missing(RANGE_BYTES)]:
                    done.result()
            except BaseException as error:  # a signal too must stop the other threads
                self._stop.set()
                if not isinstance(error, Exception):  # a signal, which does not wait for servers
                    self._client.close()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _probe(self) -> None:
        """Request one byte, for the size. A server without ranges sends the whole file, which is then kept."""
        self._part.reset()
        with self._open({"Range": "bytes=0-0"}) as response:
            if response.status_code != 200:
                self._part.begin(self._version(response))
                return
            length = response.headers.get("Content-Length")
            everything = ByteRange(0, None if length is None else int(length))
            if everything.end is not None:
                self._check_size(everything.end)
                self._part.expect(everything.end)
            self._receive(response, everything)
            self._check_size(everything.start)

    def _range(self, missing: ByteRange) -> None:
        self._client.retry(lambda: self._rest_of(missing), TRIES, progress=lambda: missing.start, stop=self._stop)

    def _rest_of(self, missing: ByteRange) -> None:
        version, end = self._part.version, missing.end or 0
        headers = {"Range": f"bytes={missing.start}-{end - 1}"}
        if version and version.validator is not None:
            headers["If-Range"] = version.validator
        with self._open(headers) as response:
            if response.status_code != 206 or self._version(response) != version:
                raise _Changed("the file changed on the server")
            if not response.headers["Content-Range"].startswith(f"bytes {missing.start}-{end - 1}/"):
                raise FetchError("the server sent another range than the one requested")
            self._receive(response, missing)

    @contextmanager
    def _open(self, headers: dict[str, str]) -> "Iterator[httpx2.Response]":
        self._extend_deadline()
        with self._client.open(self._url, headers, (200, 206, 416)) as response:  # 416 has the size of an empty file
            yield response

    def _version(self, response: "httpx2.Response") -> Version:
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
        if not size.isdecimal():
            raise FetchError("the server did not send the size of the file")
        self._check_size(int(size))
        etag = response.headers.get("ETag", "")
        return Version(int(size), etag if etag.startswith('"') else response.headers.get("Last-Modified"))

    def _check_size(self, size: int) -> None:
        if self._size not in (None, size):
            raise FetchError(f"the server has {size:,} bytes, and it should be {self._size:,}")

    def _receive(self, response: "httpx2.Response", missing: ByteRange) -> None:
        """Write what comes. Raises ReadTimeout for a server that sends less than 1 KiB a second."""
        buffer = bytearray()
        since = 0  # bytes since the deadline was set

        def flush() -> None:
            self._part.write(missing.start, bytes(buffer))
            missing.start += len(buffer)
            buffer.clear()

        try:
            for data in body(response):
                if self._stop.is_set():
                    raise FetchError("stopped")
                if missing.end is not None and missing.start + len(buffer) + len(data) > missing.end:
                    raise FetchError("the server sent more than it announced")
                buffer += data
                since += len(data)
                if since >= SLOWEST * self._client.timeout:
                    since = 0
                    self._extend_deadline()
                if len(buffer) >= WRITE_BYTES:
                    flush()
        finally:
            if buffer:
                flush()
        if missing.end is not None and missing.start < missing.end:
            raise RetryLater("the server sent less than it announced")

    def _extend_deadline(self) -> None:
        from vlmkit.io.transport import set_deadline

        set_deadline(time.monotonic() + self._client.timeout)
