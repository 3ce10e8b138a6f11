"""Progress of downloads on a terminal: one bar a file and one for all.

A file on its way: `.NAME.part`, and a journal of the stretches of it that have arrived.

A stretch is written before it is noted, so whatever the journal holds is there after a SIGKILL; what a power cut lost
is found by the checksum.

One file over HTTP: in parts at the same time where the server has ranges, taken up where it was cut off.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vlmkit import __version__
from vlmkit.io.http import FIRST_PAUSE, REDIRECTS, TRANSIENT, proxies
from vlmkit.io.records import loads
from vlmkit.io.sources import PictureError
from vlmkit.io.terminal import stderr_is_terminal

if TYPE_CHECKING:
    import httpx2

    from vlmkit.io.transport import Transport


Told = Callable[[int], None]


class Bars:
    """Bars on standard error, if that is a terminal and they are wanted. `total` is the bytes of all, where known."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and stderr_is_terminal()
        self._all: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        if self._all is not None:
            self._all.close()

    def expect(self, size: int | None) -> None:
        """So many bytes are to come in all."""
        if self._shown:
            from tqdm import tqdm

            self._all = tqdm(desc="all", total=size, unit="B", unit_scale=True, dynamic_ncols=True, leave=False)

    @contextmanager
    def file(self, name: str, size: int | None) -> Iterator[tuple[Told, Told]]:
        """What to tell of each arrival, and of the size once it is known."""
        if not self._shown:
            yield (lambda count: None), (lambda size: None)
            return
        from tqdm import tqdm

        with tqdm(desc=name, total=size, unit="B", unit_scale=True, dynamic_ncols=True, leave=False) as bar:

            def told(count: int) -> None:
                with self._lock:
                    bar.update(count)
                    if self._all is not None:
                        self._all.update(count)

            def begun(size: int) -> None:
                bar.total = size
                bar.refresh()

            yield told, begun

    @contextmanager
    def unpacking(self, name: str) -> Iterator[Callable[[], None]]:
        """What to call for each file that came out of an archive."""
        if not self._shown:
            yield lambda: None
            return
        from tqdm import tqdm

        with tqdm(desc=f"unpacking {name}", unit=" files", dynamic_ncols=True, leave=False) as bar:
            yield lambda: bar.update() and None


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


PIECE = 16 << 20  # bytes of one request
CONNECTIONS = 4  # for one file
TRIES = 4  # without progress
NOTED = 256 << 10  # bytes between two notes of what has arrived
PROGRESS = 1 << 20  # bytes after which the tries are counted anew
SLOWEST = 1024  # bytes a second; a server that is slower for `timeout` seconds is given up
LONGEST_PAUSE = 60.0  # seconds that a server may ask for


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file: where from, where to, and what is known of it: `size` in bytes, `digest` as `sha256:…` or `md5:…`."""

    url: str
    path: Path
    size: int | None = None
    digest: str | None = None

    def is_there(self) -> bool:
        return self.path.is_file() and self.size in (None, self.path.stat().st_size)


class _Transient(Exception):
    """Another try may help; `pause` is what the server asked for, in seconds."""

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause


class _Changed(Exception):
    """The server has another version than the one whose parts are here."""


class Line:
    """Connections for transfers, from several threads; leaving the `with` block cuts what is under way.

    Only public addresses are connected to, but for the hosts in `trusted`, unless `allow_private`. The environment's
    proxies, which look names up themselves, are used where `proxied`: for addresses that come from no stranger.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        trusted: Collection[str] = (),
        proxied: bool = True,
        timeout: float = 30.0,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._trusted = trusted
        self._proxied = proxied and proxies()
        self._headers = headers or {}
        self._made: httpx2.Client | None = None
        self._own: Transport | None = None
        self._lock = threading.Lock()
        self.timeout = timeout

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        if self._own is not None:
            self._own.free()

    def cut(self) -> None:
        """End what is under way."""
        if self._made is not None:
            self._made.close()

    def client(self) -> "httpx2.Client":
        import httpx2

        from vlmkit.io.transport import Transport

        with self._lock:
            if self._made is None:
                if not self._proxied:
                    self._own = Transport(
                        allow_private=self._allow_private, trusted=self._trusted, connections=4 * CONNECTIONS
                    )
                self._made = httpx2.Client(
                    transport=self._own,
                    headers={"User-Agent": f"vlmkit/{__version__}", "Accept-Encoding": "identity", **self._headers},
                    timeout=httpx2.Timeout(self.timeout, pool=None),
                )
            return self._made


def fetch(wanted: Wanted, line: Line, told: Told = lambda count: None, begun: Told = lambda size: None) -> str:
    """Bring `wanted` to its path, whole or not at all; returns its SHA-256.

    `begun` hears the size as soon as it is known, `told` of every arrival the number of bytes, first of all how many
    were there before. Raises TransferError.
    """
    with Part(wanted.path) as part:
        fetching = _Fetching(wanted, part, line, told, begun)
        try:
            fetching.run()
        except _Changed:
            part.reset()
            fetching.count(-fetching.counted)
            try:
                fetching.run()
            except _Changed as error:
                raise TransferError(str(error)) from None
        return part.finish(wanted.digest)


@dataclass(slots=True)
class _Stretch:
    """[at, end) is still to come; `end` is None where nobody said how much there is."""

    at: int
    end: int | None


class _Fetching:
    def __init__(self, wanted: Wanted, part: Part, line: Line, told: Told, begun: Told) -> None:
        self._wanted = wanted
        self._part = part
        self._line = line
        self._told = told
        self._begun = begun
        self._stop = threading.Event()
        self.counted = 0

    def count(self, arrived: int) -> None:
        self.counted += arrived
        self._told(arrived)

    def run(self) -> None:
        self._stop.clear()
        if self._part.version is None:
            whole = _Stretch(0, None)
            self._patiently(lambda: self._first(whole), whole)
        if self._part.version is None:  # it came as a whole
            return
        self._begun(self._part.version.size)
        self.count(self._part.arrived())
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as pool:
            try:
                for done in [pool.submit(self._piece, *gap) for gap in self._part.gaps(PIECE)]:
                    done.result()
            except BaseException as error:
                self._stop.set()
                if not isinstance(error, Exception):  # a signal, which does not wait for servers
                    self._line.cut()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _patiently(self, step: Callable[[], None], stretch: _Stretch) -> None:
        """Do `step`, with several tries where it comes no further. Raises TransferError, _Changed."""
        import httpcore2
        import httpx2

        tries, pause, base = 0, FIRST_PAUSE, stretch.at
        while True:
            try:
                return step()
            except (httpx2.UnsupportedProtocol, httpcore2.UnsupportedProtocol, httpx2.InvalidURL) as error:
                raise TransferError(f"not a URL that can be fetched ({error})") from None
            except PictureError as error:  # of the address
                raise TransferError(str(error)) from None
            except (httpx2.TimeoutException, httpcore2.TimeoutException):
                reason, wait = "the server is too slow", 0.0
            except (httpx2.TransportError, httpcore2.NetworkError, httpcore2.ProtocolError, _Transient) as error:
                reason, wait = str(error) or repr(error), getattr(error, "pause", 0.0)
            if stretch.at - base >= PROGRESS:
                tries, pause, base = 0, FIRST_PAUSE, stretch.at
            tries += 1
            if tries == TRIES:
                raise TransferError(f"{reason} ({tries} tries)")
            if self._stop.wait(max(pause, min(wait, LONGEST_PAUSE))):
                raise TransferError("stopped")
            pause *= 3

    def _first(self, whole: _Stretch) -> None:
        """Ask for one byte. A server without ranges sends all of it, and that is taken."""
        self.count(-whole.at)
        whole.at = 0
        with self._reply({"Range": "bytes=0-0"}) as reply:
            if reply.status_code != 200:
                self._part.begin(self._version(reply))
                return
            whole.end = int(reply.headers["Content-Length"]) if "Content-Length" in reply.headers else None
            self._check_size(whole.end)
            if whole.end is not None:
                self._part.check_room(whole.end)
                self._begun(whole.end)
            self._receive(reply, whole)
            self._check_size(whole.at)

    def _piece(self, start: int, end: int) -> None:
        stretch = _Stretch(start, end)
        self._patiently(lambda: self._range(stretch), stretch)

    def _range(self, stretch: _Stretch) -> None:
        assert self._part.version is not None and stretch.end is not None
        headers = {"Range": f"bytes={stretch.at}-{stretch.end - 1}"}
        if self._part.version.validator is not None:
            headers["If-Range"] = self._part.version.validator
        with self._reply(headers) as reply:
            if reply.status_code != 206 or self._version(reply) != self._part.version:
                raise _Changed("the file changes on the server")
            if not reply.headers["Content-Range"].startswith(f"bytes {stretch.at}-{stretch.end - 1}/"):
                raise TransferError("the server sends another range than was asked for")
            self._receive(reply, stretch)

    @contextmanager
    def _reply(self, headers: dict[str, str]) -> "Iterator[httpx2.Response]":
        """The answer after all redirects: 200, 206 or a 416 that tells the size. Raises TransferError, _Transient."""
        client = self._line.client()
        request = client.build_request("GET", self._wanted.url, headers=headers)
        for _ in range(REDIRECTS + 1):
            self._be_quick()
            reply = client.send(request, stream=True)
            try:
                if reply.next_request is None:
                    _check_status(reply)
                    yield reply
                    return
                request = reply.next_request
            finally:
                reply.close()
        raise TransferError(f"more than {REDIRECTS} redirects")

    def _version(self, reply: "httpx2.Response") -> Version:
        size = reply.headers.get("Content-Range", "").rpartition("/")[2]
        if not size.isdecimal():
            raise TransferError("the server does not say how large the file is")
        self._check_size(int(size))
        etag = reply.headers.get("ETag", "")
        return Version(int(size), etag if etag.startswith('"') else reply.headers.get("Last-Modified"))

    def _check_size(self, size: int | None) -> None:
        if size is not None and self._wanted.size not in (None, size):
            raise TransferError(f"the server has {size:,} bytes, and it should be {self._wanted.size:,}")

    def _receive(self, reply: "httpx2.Response", stretch: _Stretch) -> None:
        """Write what comes, and note it in lumps."""
        lump = bytearray()

        def write() -> None:
            self._part.write(stretch.at, bytes(lump))
            stretch.at += len(lump)
            lump.clear()

        try:
            for data in self._paced(reply):
                if stretch.end is not None and stretch.at + len(lump) + len(data) > stretch.end:
                    raise TransferError("the server sends more than it said")
                lump += data
                self.count(len(data))
                if len(lump) >= NOTED:
                    write()
        finally:
            if lump:
                write()
        if stretch.end is not None and stretch.at < stretch.end:
            raise _Transient("the server sends less than it said")

    def _paced(self, reply: "httpx2.Response") -> Iterator[bytes]:
        """The body; a server that sends less than 1 KiB a second, for `timeout` seconds, is too slow."""
        got = 0
        for data in reply.iter_raw():
            if self._stop.is_set():
                raise TransferError("stopped")
            yield data
            got += len(data)
            if got >= SLOWEST * self._line.timeout:
                got = 0
                self._be_quick()

    def _be_quick(self) -> None:
        from vlmkit.io.transport import finish_by

        finish_by(time.monotonic() + self._line.timeout)


def _check_status(reply: "httpx2.Response") -> None:
    status = f"HTTP {reply.status_code} {reply.reason_phrase}".strip()
    if reply.status_code in TRANSIENT:
        asked = reply.headers.get("Retry-After", "")
        raise _Transient(status, float(asked) if asked.isdecimal() else 0.0)
    if reply.status_code not in (200, 206) and not (reply.status_code == 416 and "Content-Range" in reply.headers):
        raise TransferError(status)
    encoding = reply.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise TransferError(f"the server packs it ({encoding}), though asked not to")


def flip_augment(url: str, mirror: str | None) -> str:
    """`url` with scheme and host, and the start of the path, of `mirror`."""
    if mirror is None:
        return url
    parts = urlsplit(url)
    return mirror.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")
