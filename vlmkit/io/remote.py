"""Files on the web: read once from beginning to end, and from then on by parts, without a copy that stays."""

import atexit
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from vlmkit.io.http import FetchError, HttpClient, RetryLater, body
from vlmkit.io.sources import PictureError

if TYPE_CHECKING:
    import httpx2

TRIES = 6  # of a part, with a minute of pauses
SECONDS = 300.0  # in which a part must come, all tries together
NO_PARTS = "the server sends whole files only, no parts of them (HTTP ranges)"
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


class WholeFile:
    """The file at `url` from beginning to end, by `client`; where it is cut it goes on from there.

    `size` in bytes and `version` are known once something was read; the version is empty where the server sends no
    parts of files.
    """

    def __init__(self, client: HttpClient, url: str) -> None:
        self.size, self.version = 0, ""
        self._client, self._url, self._at, self._known = client, url, 0, ""
        self._chunks: Iterator[bytes] | None = None
        self._opened = ExitStack()

    def pieces(self) -> Generator[bytes, None, None]:
        """All of it, as it comes. Raises FetchError."""
        try:
            while chunk := self._read():
                yield chunk
        finally:
            self._close()

    def _read(self) -> bytes:
        from vlmkit.io.transport import set_deadline

        deadline = time.monotonic() + SECONDS
        set_deadline(deadline)
        return self._client.retry(self._next, TRIES, deadline=deadline)

    def _next(self) -> bytes:
        try:
            if self._chunks is None:
                self._chunks = self._open()
            chunk = next(self._chunks, b"")
            if not chunk and self._at < self.size:
                raise RetryLater(f"{self._at} of {self.size} bytes came")
        except BaseException:
            self._close()
            raise
        self._at += len(chunk)
        return chunk

    def _close(self) -> None:
        self._chunks = None
        self._opened.close()

    def _open(self) -> Iterator[bytes]:
        """The chunks from the place that was reached on."""
        headers = {"Range": f"bytes={self._at}-"}
        response = self._opened.enter_context(self._client.open(self._url, headers, (200, 206)))
        has_parts = response.status_code == 206
        length = int(response.headers.get("Content-Length", -1))
        self.size = _total(response) if has_parts else length
        if self.size < 0:
            raise FetchError("the server does not say how long the file is")
        if has_parts and length >= 0 and length != self.size - self._at:
            raise RetryLater(f"the server sends {length} of {self.size - self._at} bytes")
        known = f"{self.size} {_named(response)}"
        if self._at and known != self._known:
            raise FetchError("it changed on the server while it was read")
        self._known, self.version = known, known if has_parts else ""
        return _behind(body(response), 0 if has_parts else self._at)


def _behind(chunks: Iterator[bytes], skipped: int) -> Iterator[bytes]:
    """`chunks` without the first `skipped` bytes."""
    for chunk in chunks:
        if rest := chunk[skipped:]:
            yield rest
        skipped = max(0, skipped - len(chunk))


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
    return client_of(url).retry(step, **how)


@contextmanager
def _part(url: str, which: str) -> Iterator["httpx2.Response"]:
    client = client_of(url)
    with client.open(url, {"Range": f"bytes={which}"}, (200, 206)) as response:
        if response.status_code == 200:
            raise FetchError(NO_PARTS)
        yield response


def version_of(response: "httpx2.Response") -> str:
    """What changes with the content of a file."""
    return f"{_total(response)} {_named(response)}"


def _named(response: "httpx2.Response") -> str:
    return str(response.headers.get("ETag") or response.headers.get("Last-Modified", ""))


def _total(response: "httpx2.Response") -> int:
    found = TOTAL.fullmatch(response.headers.get("Content-Range", ""))
    if not found:
        raise FetchError("the server does not say how long the file is")
    return int(found[1])


def client_of(url: str) -> HttpClient:
    """The client for the host of `url`, whom the user named, whatever its address; each process has its own."""
    key = urlsplit(url).hostname or "", os.getpid()
    return _clients.setdefault(key, HttpClient(trusted=key[:1], use_proxies=True))


@atexit.register
def close_clients() -> None:
    """End all connections."""
    while _clients:
        _clients.popitem()[1].close()
