"""Pictures by URL: fetched with limits on size, time, redirects and addresses, and tried again where that may help."""

import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import IO, TYPE_CHECKING
from urllib.request import getproxies

from vlmkit import __version__
from vlmkit.io.sources import PictureError

if TYPE_CHECKING:
    import httpx2

    from vlmkit.io.transport import Transport

FETCHERS = 16  # at the same time: they wait for the network, not for a core
MAX_BYTES = 64 << 20
MEMORY_BYTES = 1 << 20  # of each picture that waits; the rest of it waits on disk
CONNECT_SECONDS = 10.0
READ_SECONDS = 10.0  # without a byte
TOTAL_SECONDS = 60.0  # of one URL, all tries and redirects together
TRIES = 3
FIRST_PAUSE = 0.5  # seconds; each further pause is three times as long
REDIRECTS = 5
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
Headers = Mapping[str, str]


def is_url(path: str) -> bool:
    return path[:8].lower().startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class Download:
    """What came from a URL: `size` in bytes, `mtime` of its Last-Modified, if there was one. It can be read once."""

    file: IO[bytes]
    size: int
    mtime: float | None

    def read(self) -> bytes:
        with self.file:
            self.file.seek(0)
            return self.file.read()


class _Transient(Exception):
    """Another try may help; `pause` is what the server asked for, in seconds."""

    def __init__(self, what: str, pause: float | None = None) -> None:
        super().__init__(what)
        self.pause = pause


class Web:
    """Fetches pictures, from several threads at once; leaving the `with` block cuts what is under way.

    Only public addresses are connected to, and directly, unless `allow_private`: then also private ones, and the
    environment's proxies are used, which look the names up themselves, so that nothing could be checked here. The
    hosts in `trusted` may have any address.
    """

    def __init__(
        self, *, allow_private: bool = False, seconds: float = TOTAL_SECONDS, trusted: Collection[str] = ()
    ) -> None:
        self._allow_private = allow_private
        self._trusted = trusted
        self._seconds = seconds
        self._made: httpx2.Client | None = None
        self._own: Transport | None = None
        self._busy = 0  # threads that fetch
        self._lock = threading.Lock()
        self._left = threading.Event()

    def __enter__(self) -> "Web":
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._made is not None:
            self._made.close()
        if self._own is not None and not self._busy:
            self._own.free()

    def fetch(self, url: str, refuse: Callable[[Headers], str | None] = lambda headers: None) -> Download:
        """The picture at `url`. Raises PictureError with the reason of the last try.

        `refuse` says by the headers of the answer why it is not to be used, if it is not: then no more is read.
        """
        with self._lock:
            self._busy += 1
        try:
            return self._fetch(url, refuse)
        finally:
            with self._lock:
                self._busy -= 1

    def _fetch(self, url: str, refuse: Callable[[Headers], str | None]) -> Download:
        import httpcore2
        import httpx2

        from vlmkit.io.transport import finish_by

        end = time.monotonic() + self._seconds
        finish_by(end)
        pause = FIRST_PAUSE
        for tries in range(1, TRIES + 1):
            try:
                return self._get(url, end, refuse)
            except (httpx2.TimeoutException, httpcore2.TimeoutException):
                raise PictureError("the server is too slow") from None
            except (httpx2.UnsupportedProtocol, httpcore2.UnsupportedProtocol, httpx2.InvalidURL) as error:
                raise PictureError(f"not a URL that can be fetched ({error})") from None
            except (httpx2.TransportError, httpcore2.NetworkError, httpcore2.ProtocolError, _Transient) as error:
                wait = max(pause, getattr(error, "pause", None) or 0)
                if tries == TRIES or time.monotonic() + wait > end:
                    raise PictureError(f"{error or repr(error)} ({tries} tries){self._hint()}") from None
            if self._left.wait(wait):
                break
            pause *= 3
        raise PictureError("stopped")

    def _hint(self) -> str:
        return "; proxies are used with --allow-private only" if proxies() and not self._allow_private else ""

    def _get(self, url: str, end: float, refuse: Callable[[Headers], str | None]) -> Download:
        client = self._client()
        request = client.build_request("GET", url)
        for _ in range(REDIRECTS + 1):
            response = client.send(request, stream=True)
            try:
                if response.next_request is None:
                    if response.status_code == 200 and (why := refuse(response.headers)):
                        raise PictureError(why)
                    return _body(response, end)
                request = response.next_request
            finally:
                response.close()
        raise PictureError(f"more than {REDIRECTS} redirects")

    def _client(self) -> "httpx2.Client":
        import httpx2

        from vlmkit.io.transport import Transport

        with self._lock:
            if self._left.is_set():
                raise PictureError("stopped")
            if self._made is None:
                if not (self._allow_private and proxies()):
                    self._own = Transport(
                        allow_private=self._allow_private, trusted=self._trusted, connections=FETCHERS
                    )
                self._made = httpx2.Client(
                    transport=self._own,
                    # Asked for plain, what comes is what is stored: nothing here unpacks, so nothing can blow up.
                    headers={"User-Agent": f"vlmkit/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"},
                    timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=None),
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                )
            return self._made


def proxies() -> bool:
    """Whether the environment names any."""
    return not {"http", "https", "all"}.isdisjoint(getproxies())


def _body(response: "httpx2.Response", end: float) -> Download:
    status = f"HTTP {response.status_code} {response.reason_phrase}".strip()
    if response.status_code in TRANSIENT:
        asked = response.headers.get("Retry-After", "")
        raise _Transient(status, float(asked) if asked.isdecimal() else None)
    if response.status_code != 200:
        raise PictureError(status)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise PictureError(f"the server packs it ({encoding}), though asked not to")
    file = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 (Download.read closes it)
    size = 0
    try:
        if int(response.headers.get("Content-Length", 0)) > MAX_BYTES:
            raise PictureError(f"larger than {MAX_BYTES >> 20} MiB")
        for chunk in response.iter_raw():
            size += len(chunk)
            if size > MAX_BYTES:
                raise PictureError(f"larger than {MAX_BYTES >> 20} MiB")
            if time.monotonic() > end:
                raise PictureError("the server is too slow")
            file.write(chunk)
        if not size:
            raise PictureError("the server sent nothing")
    except BaseException:
        file.close()
        raise
    return Download(file, size, _seconds(response.headers.get("Last-Modified")))


def _seconds(date: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date; None if there is none that can be read."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
