"""HTTP: one client with retries, limits on time, size and redirects, and a check of the addresses connected to."""

import math
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import IO, TYPE_CHECKING, TypeVar
from urllib.request import getproxies

from vlmkit import __version__
from vlmkit.io.sources import PictureError

if TYPE_CHECKING:
    import httpx2

FETCHERS = 16  # requests at the same time: they wait for the network, not for a core
MAX_BYTES = 64 << 20  # of a picture
MEMORY_BYTES = 1 << 20  # of each picture that waits; the rest of it waits on disk
TIMEOUT = 10.0  # seconds to connect, and seconds without a byte
TOTAL_SECONDS = 60.0  # of one picture, all tries and redirects together
TRIES = 3
FIRST_PAUSE = 0.5  # seconds; each further pause is three times as long
LONGEST_PAUSE = 60.0  # seconds that a server may ask for
PROGRESS_BYTES = 1 << 20  # of progress, after which the count of tries starts again
MAX_REDIRECTS = 5
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
Headers = Mapping[str, str]
T = TypeVar("T")


class FetchError(PictureError):
    """This URL cannot be fetched; the message says why."""


class RetryLater(Exception):
    """Another try may succeed, after the `seconds` that the server asks for."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Download:
    """The body of a response: `size` in bytes, `mtime` of its Last-Modified, if there was one. It can be read once."""

    file: IO[bytes]
    size: int
    mtime: float | None

    def read(self) -> bytes:
        with self.file:
            self.file.seek(0)
            return self.file.read()


class HttpClient:
    """An HTTP client for several threads; leaving the `with` block ends transfers under way.

    Only public addresses are connected to, unless `allow_private`; the hosts in `trusted` may have any address.
    Proxies look names up themselves, so that no address could be checked here: those of the environment are used with
    `allow_private` or `use_proxies` alone. `timeout` is in seconds, to connect and without a byte; `total_seconds` are
    those of `fetch`, all tries and redirects together.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        trusted: Collection[str] = (),
        use_proxies: bool = False,
        timeout: float = TIMEOUT,
        total_seconds: float = TOTAL_SECONDS,
    ) -> None:
        self.timeout = timeout
        self._total_seconds = total_seconds
        self._allow_private = allow_private
        self._trusted = trusted
        self._through_proxy = proxies() and (allow_private or use_proxies)
        self._client: httpx2.Client | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __enter__(self) -> "HttpClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed.set()
        if self._client is not None:
            self._client.close()

    def fetch(self, url: str, refuse: Callable[[Headers], str | None] = lambda headers: None) -> Download:
        """The picture at `url`. Raises FetchError with the reason of the last try.

        `refuse` is given the headers and returns why the response must not be used; then no more of it is read.
        """
        import httpx2

        from vlmkit.io.transport import set_deadline

        deadline = time.monotonic() + self._total_seconds
        set_deadline(deadline)

        def step() -> Download:
            try:
                with self.open(url, {"Accept": "image/*"}) as response:
                    if reason := refuse(response.headers):
                        raise FetchError(reason)
                    return _download(response)
            except httpx2.TimeoutException:  # not tried again: a server that is silent costs all its time each time
                raise FetchError("the server is too slow") from None

        return self.retry(step, deadline=deadline)

    @contextmanager
    def open(
        self, url: str, headers: Headers | None = None, statuses: Collection[int] = (200,)
    ) -> "Iterator[httpx2.Response]":
        """The response of `url` after redirects, to be read with `body`. To be called inside `retry`."""
        client = self._connect()
        request = client.build_request("GET", url, headers=headers)
        for _ in range(MAX_REDIRECTS + 1):  # by hand: httpx2 would read the bodies of redirects, however long they are
            response = client.send(request, stream=True)
            try:
                if response.next_request is None:
                    _check(response, statuses)
                    yield response
                    return
                request = response.next_request
            finally:
                response.close()
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")

    def retry(
        self,
        step: Callable[[], T],
        tries: int = TRIES,
        *,
        deadline: float = math.inf,
        progress: Callable[[], int] = lambda: 0,
        stop: threading.Event | None = None,
    ) -> T:
        """Call `step` up to `tries` times, with a longer pause each time or the one the server asks for.

        The count starts again when `progress`, in bytes, has grown, which tenacity and stamina cannot do. Raises
        FetchError, also at `deadline` of time.monotonic() and where `stop` is set.
        """
        import httpx2

        failed, pause, base = 0, FIRST_PAUSE, progress()
        while True:
            try:
                return step()
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
                raise FetchError(f"not a valid URL ({error})") from None
            except httpx2.TimeoutException:
                reason, asked = "the server is too slow", 0.0
            except (httpx2.TransportError, RetryLater) as error:
                reason, asked = str(error) or repr(error), getattr(error, "seconds", 0.0)
            except httpx2.RequestError as error:  # about the address
                raise FetchError(str(error)) from None
            if progress() - base >= PROGRESS_BYTES:
                failed, pause, base = 0, FIRST_PAUSE, progress()
            failed += 1
            wait = max(pause, min(asked, LONGEST_PAUSE))
            if failed == tries or time.monotonic() + wait > deadline:
                hint = "; proxies are used with --allow-private only" if proxies() and not self._through_proxy else ""
                raise FetchError(f"{reason} ({failed} tries){hint}")
            if (stop or self._closed).wait(wait):
                raise FetchError("stopped")
            pause *= 3

    def _connect(self) -> "httpx2.Client":
        import httpx2

        from vlmkit.io.transport import Transport

        with self._lock:
            if self._closed.is_set():
                raise FetchError("stopped")
            if self._client is None:
                self._client = httpx2.Client(
                    transport=None if self._through_proxy else Transport(self._allow_private, self._trusted, FETCHERS),
                    # Nothing here unpacks, so that no response can grow in memory.
                    headers={"User-Agent": f"vlmkit/{__version__}", "Accept-Encoding": "identity"},
                    timeout=httpx2.Timeout(self.timeout, pool=None),
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                )
            return self._client


def proxies() -> bool:
    """Whether the environment names any."""
    return not {"http", "https", "all"}.isdisjoint(getproxies())


def body(response: "httpx2.Response") -> Iterator[bytes]:
    """The bytes of a response as they come, within the deadline of this thread."""
    from vlmkit.io.transport import time_left

    for chunk in response.iter_raw():
        time_left()  # through a proxy nothing else looks at it
        yield chunk


def http_date(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date; None if it cannot be read."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _check(response: "httpx2.Response", statuses: Collection[int]) -> None:
    status = f"HTTP {response.status_code} {response.reason_phrase}".strip()
    if response.status_code in TRANSIENT:
        asked = response.headers.get("Retry-After", "")
        seconds = float(asked) if asked.isdecimal() else (http_date(asked) or 0.0) - time.time()
        raise RetryLater(status, max(0.0, seconds))
    if response.status_code not in statuses:
        raise FetchError(status)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise FetchError(f"the server compresses the response ({encoding}) although it was asked not to")


def _download(response: "httpx2.Response") -> Download:
    file = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 (Download.read closes it)
    size = 0
    try:
        announced = int(response.headers.get("Content-Length", 0))
        for chunk in body(response) if announced <= MAX_BYTES else (b"",):
            size += len(chunk)
            if max(size, announced) > MAX_BYTES:
                raise FetchError(f"larger than {MAX_BYTES >> 20} MiB")
            file.write(chunk)
        if not size:
            raise FetchError("the server sent nothing")
    except BaseException:  # the file must not outlive a signal either
        file.close()
        raise
    return Download(file, size, http_date(response.headers.get("Last-Modified", "")))
