"""HTTP: one client with retries, limits on time, size and redirects, and a check of the addresses connected to."""

import math
import re
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
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
LONGEST_PAUSE = 300.0  # seconds that a server may ask for
EPOCH = 1e9  # larger numbers of seconds are a time since 1970, not a pause
RESETS = ("RateLimit-Reset", "X-RateLimit-Reset", "X-Rate-Limit-Reset")
PROGRESS_BYTES = 1 << 20  # of progress, after which the count of tries starts again
MAX_REDIRECTS = 5
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
Headers = Mapping[str, str]
T = TypeVar("T")


class FetchError(PictureError):
    """This URL cannot be fetched; the message says why."""


class RetryLater(Exception):
    """Another try may succeed, after the `seconds` that the server asks for. `is_try`: this one reached the server."""

    def __init__(self, reason: str, seconds: float = 0.0, *, is_try: bool = True) -> None:
        super().__init__(reason)
        self.seconds = seconds
        self.is_try = is_try


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
        self._pauses: dict[str, tuple[float, str]] = {}  # until when a host wants no requests, and how it said so

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
        host = request.url.netloc.decode().lower()
        until, reason = self._pauses.get(host, (0.0, ""))
        if (left := until - time.monotonic()) > 0:
            raise RetryLater(reason, left, is_try=False)
        for _ in range(MAX_REDIRECTS + 1):  # by hand: httpx2 would read the bodies of redirects, however long they are
            response = client.send(request, stream=True)
            try:
                if response.next_request is None:
                    self._note_pause(host, response)
                    _check(response, statuses)
                    yield response
                    return
                request = response.next_request
            finally:
                response.close()
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")

    def _note_pause(self, host: str, response: "httpx2.Response") -> None:
        """Have the other threads wait, too, where a host has had too many requests."""
        seconds = pause_asked(response.headers) if response.status_code == 429 else 0.0
        if 0 < seconds <= self._total_seconds:  # a longer one may be about this URL alone
            self._pauses[host] = time.monotonic() + seconds, _status(response)

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

        Where there is a `deadline` of time.monotonic(), it alone ends tries with a pause that the server asks for. The
        count starts again when `progress`, in bytes, has grown, which tenacity and stamina cannot do. Raises
        FetchError, also at `deadline` and where `stop` is set.
        """
        import httpx2

        failed, pause, base = 0, FIRST_PAUSE, progress()
        while True:
            try:
                return step()
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
                raise FetchError(f"not a valid URL ({error})") from None
            except httpx2.TimeoutException:
                reason, asked, is_try = "the server is too slow", 0.0, True
            except httpx2.TransportError as error:
                reason, asked, is_try = str(error) or repr(error), 0.0, True
            except RetryLater as error:
                reason, asked, is_try = str(error), error.seconds, error.is_try
            except httpx2.RequestError as error:  # about the address
                raise FetchError(str(error)) from None
            if progress() - base >= PROGRESS_BYTES:
                failed, pause, base = 0, FIRST_PAUSE, progress()
            failed += is_try
            wait = max(asked, FIRST_PAUSE) if asked else pause
            is_last = failed >= tries and not (asked and deadline < math.inf)
            if is_last or asked > LONGEST_PAUSE or time.monotonic() + wait > deadline:
                reason += f"; the server asks to wait {asked:.0f} seconds" if asked else ""
                hint = "; proxies are used with --allow-private only" if proxies() and not self._through_proxy else ""
                raise FetchError(f"{reason} ({failed} tries){hint}")
            if (stop or self._closed).wait(wait):
                raise FetchError("stopped")
            pause *= 1 if asked else 3

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
        found = parsedate_to_datetime(text)
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def pause_asked(headers: Headers) -> float:
    """The seconds that a server asks to wait, in whatever form it does; 0 where it does not.

    Retry-After (RFC 9110) in seconds or as a date by the server's clock; retry-after-ms; and when its limit begins
    anew, where nothing is left of it: RateLimit (the IETF's draft) and the older RateLimit-Reset, X-RateLimit-Reset.
    """
    now = http_date(headers.get("Date", "")) or time.time()
    asked = headers.get("Retry-After", "").strip()
    if (seconds := _number(asked)) is None and asked:
        seconds = (http_date(asked) or now) - now
    if seconds is None and (milliseconds := _number(headers.get("Retry-After-Ms", ""))) is not None:
        seconds = milliseconds / 1000
    if seconds is None and (found := re.search(r"\br=0\b.*?\bt=(\d+)", headers.get("RateLimit", ""))):
        seconds = float(found[1])
    if seconds is None:
        resets = filter(None, (_number(headers.get(name, "")) for name in RESETS))
        if (seconds := next(resets, None)) is not None and seconds > EPOCH:
            seconds = (seconds / 1000 if seconds > EPOCH * 100 else seconds) - now
    return max(0.0, seconds or 0.0)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,15}(\.\d*)?", text.strip()) else None


def _status(response: "httpx2.Response") -> str:
    return f"HTTP {response.status_code} {response.reason_phrase}".strip()


def _check(response: "httpx2.Response", statuses: Collection[int]) -> None:
    # Some servers say 403 where they mean 429.
    if response.status_code in TRANSIENT or (response.status_code == 403 and "Retry-After" in response.headers):
        is_about_pace = response.status_code == 429 or "Retry-After" in response.headers
        raise RetryLater(_status(response), pause_asked(response.headers) if is_about_pace else 0.0)
    if response.status_code not in statuses:
        raise FetchError(_status(response))
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
