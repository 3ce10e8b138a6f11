"""Containers on the web: read once from beginning to end, and from then on by parts, without a copy that stays."""

import atexit
import math
import os
import re
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from vlmkit.io.files import explain_no_room
from vlmkit.io.http import FetchError, HttpClient, RetryLater, body, http_date
from vlmkit.io.sources import PictureError, Source
from vlmkit.io.tar import Unreadable

if TYPE_CHECKING:
    import httpx2

TRIES = 6  # of a part, with a minute of pauses
SECONDS = 300.0  # in which a part must come, all tries together
T = TypeVar("T")
_clients: dict[tuple[str, int], HttpClient] = {}  # by host and process
TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")


class RemotePart(NamedTuple):
    """`size` bytes from `offset` on of the file at `url`, which is of this `version`."""

    url: str
    offset: int
    size: int
    mtime: float
    version: str

    def __str__(self) -> str:
        return f"{self.url} at byte {self.offset}"

    def read(self) -> bytes:
        return fetch_range(self.url, self.offset, self.size, self.version) if self.size else b""


class Spool:
    """All bytes of the file at `url`, on the disk as long as something refers to this."""

    def __init__(self, url: str, version: str, file: IO[bytes], mtime: float) -> None:
        self.url, self.version, self.mtime = url, version, mtime
        self.number = os.dup(file.fileno())
        self.size = os.fstat(self.number).st_size
        weakref.finalize(self, os.close, self.number)

    @property
    def source(self) -> Source:
        """The file, which has no name."""
        return Source(f"/proc/self/fd/{self.number}", 0, self.size, self.mtime)

    def place(self, item: T) -> T:
        """`item` with a part of the file at `url` as its `source`, if it has a source."""
        member = getattr(item, "source", None)
        if isinstance(member, Source):
            part = RemotePart(self.url, member.offset, member.size, member.mtime, self.version)
            item.source = Spooled(part, self)  # type: ignore[attr-defined]
        elif member is not None and not isinstance(member, Unreadable):
            item.source = Unreadable("stored without its zeros")  # type: ignore[attr-defined]
        return item


@dataclass(frozen=True, eq=False, slots=True)
class Spooled:
    """A part of a file whose bytes are on the disk for now."""

    part: RemotePart
    spool: Spool

    def __str__(self) -> str:
        return str(self.part)

    @property
    def size(self) -> int:
        return self.part.size

    @property
    def mtime(self) -> float:
        return self.part.mtime

    def read(self) -> bytes:
        return os.pread(self.spool.number, self.size, self.part.offset)


def spool(url: str, on_end: Callable[[str, bool], None] | None = None) -> Spool:
    """The file at `url`, from beginning to end; `on_end` is called with the URL, and whether it came.

    Raises PictureError, and VlmkitError where the disk is full.
    """
    version, mtime, came = "", 0.0, False

    def step() -> None:
        nonlocal version, mtime
        at = file.seek(0, os.SEEK_END)
        with _part(url, f"{at}-") as response:
            if at and version_of(response) != version:
                file.truncate(0)
                raise RetryLater("it changed on the server meanwhile")
            version, total = version_of(response), _total(response)
            mtime = http_date(response.headers.get("Last-Modified", "")) or 0.0
            for chunk in body(response):
                file.write(chunk)
        if (size := file.seek(0, os.SEEK_END)) != total:
            file.truncate(0)
            raise RetryLater(f"{size} of {total} bytes came")

    with tempfile.TemporaryFile(prefix="vlmkit-") as file:
        try:
            with explain_no_room(tempfile.gettempdir(), url, "free some space, or set TMPDIR to another folder"):
                _retry(url, step, math.inf, progress=lambda: file.seek(0, os.SEEK_END))
            came = True
            return Spool(url, version, file, mtime)
        finally:
            if on_end is not None:
                on_end(url, came)


def fetch_range(url: str, offset: int, size: int, version: str) -> bytes:
    """`size` bytes of the file at `url`. Raises PictureError, also where it is of another `version`."""

    def step() -> bytes:
        with _part(url, f"{offset}-{offset + size - 1}") as response:
            if version_of(response) != version:
                raise FetchError("it changed on the server since it was first read")
            data = b"".join(body(response))
        if len(data) != size:
            raise RetryLater(f"{len(data)} of {size} bytes came")
        return data

    return _retry(url, step, time.monotonic() + SECONDS, tries=TRIES)


def remote_stamp(url: str) -> list[Any]:
    """[url, bytes, version], or what no file has where it cannot be reached."""

    def step() -> list[Any]:
        with _part(url, "0-0") as response:
            return [url, _total(response), version_of(response)]

    try:
        return _retry(url, step, time.monotonic() + SECONDS)
    except PictureError:
        return [url, -1, 0]


def _retry(url: str, step: Callable[[], T], deadline: float, **how: Any) -> T:
    from vlmkit.io.transport import set_deadline

    set_deadline(deadline)
    return _client(url).retry(step, **how)


@contextmanager
def _part(url: str, which: str) -> Iterator["httpx2.Response"]:
    client = _client(url)
    with client.open(url, {"Range": f"bytes={which}"}, (200, 206)) as response:
        if response.status_code == 200:
            raise FetchError("the server sends whole files only, no parts of them (HTTP ranges)")
        yield response


def version_of(response: "httpx2.Response") -> str:
    """What changes with the content of a file."""
    named = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
    return f"{_total(response)} {named}"


def _total(response: "httpx2.Response") -> int:
    found = TOTAL.fullmatch(response.headers.get("Content-Range", ""))
    if not found:
        raise FetchError("the server does not say how long the file is")
    return int(found[1])


def _client(url: str) -> HttpClient:
    """The client for the host of `url`, whom the user named, whatever its address; each process has its own."""
    key = urlsplit(url).hostname or "", os.getpid()
    return _clients.setdefault(key, HttpClient(trusted=key[:1], use_proxies=True))


@atexit.register
def close_clients() -> None:
    """End all connections."""
    while _clients:
        _clients.popitem()[1].close()
