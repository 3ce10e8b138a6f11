"""Shards by URL: http and https by our own client, all else by fsspec. They are read once, and no copy is kept."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from itertools import chain
from queue import Full, Queue
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

from vlmkit.errors import VlmkitError, check_installed, reason_of
from vlmkit.io.http import HttpClient
from vlmkit.io.remote import WholeFile, client_of
from vlmkit.io.sources import PictureError, is_remote, is_url

KEPT = 4 << 20  # bytes before the place last read that can be read again
PIECE = 1 << 20  # bytes
AHEAD = 16  # pieces that are fetched while others are worked on
WAIT = 0.1  # seconds between two looks whether all was given up
TIMEOUT = 30.0  # seconds without a byte


class ForwardFile:
    """A file that is read and sought forward, and back by a few MB at most, as its pieces come."""

    def __init__(self, pieces: Iterator[bytes], size: int, version: str = "") -> None:
        self.size, self.version = size, version
        self.came = True  # unless reading failed
        self._pieces = pieces
        self._held = bytearray()
        self._start = 0  # of what is held
        self._at = 0

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        self._at = at + (self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """Fewer than `size` bytes at the end alone. Raises OSError for what is no longer held."""
        if self._at < self._start:
            raise OSError("a header that is too large")
        while (end := self._start + len(self._held)) < self._at + size and (piece := self._next()):
            if end <= self._at - KEPT:  # skipped
                self._held.clear()
                self._start = end
            self._held += piece
        first = self._at - self._start
        data = bytes(self._held[first : first + size])
        self._at += len(data)
        if (drop := self._at - self._start - KEPT) > KEPT:
            del self._held[:drop]
            self._start += drop
        return data

    def _next(self) -> bytes:
        try:
            return next(self._pieces, b"")
        except PictureError:
            self.came = False
            raise


@contextmanager
def open_remote(url: str, *, allow_private: bool, named: bool) -> Iterator[ForwardFile]:
    """The file at `url`. Raises PictureError, also where it is read.

    It is fetched from a private address with `allow_private` or, as the user `named` it, from its own host.
    """
    if not is_url(url):
        with _fsspec(url) as (file, size), _ahead(_pieces(file)) as pieces:
            yield ForwardFile(pieces, size)
        return
    with nullcontext(client_of(url)) if named else HttpClient(allow_private=allow_private, timeout=TIMEOUT) as client:
        whole = WholeFile(client, url)
        with _ahead(whole.pieces()) as pieces:
            first = next(pieces, b"")  # before which nothing is known of the file
            yield ForwardFile(chain([first], pieces), whole.size, whole.version)


def check_remote(names: list[str]) -> None:
    """Raise VlmkitError where what opens one of the URLs `names` is not installed."""
    for protocol in {urlsplit(name).scheme for name in names if is_remote(name) and not is_url(name)}:
        check_installed(f"{protocol}://", "vlmkit[fsspec]", "fsspec")
        from fsspec import get_filesystem_class

        try:
            get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            raise VlmkitError(f"{protocol}:// cannot be opened ({reason_of(error)})", "check the URL") from None


def glob_remote(pattern: str) -> list[str]:
    """The files that a pattern of fsspec stands for, in order. Raises VlmkitError."""
    check_remote([pattern])
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(pattern)
        return sorted(map(files.unstrip_protocol, files.glob(path)))
    except Exception as error:  # each kind of store has its own
        raise VlmkitError(
            f"{pattern} cannot be listed ({reason_of(error)})", "check the address and the keys"
        ) from None


@contextmanager
def _fsspec(url: str) -> Iterator[tuple[Any, int]]:
    """The open file at `url`, and its size."""
    from fsspec.core import url_to_fs

    with ExitStack() as stack:
        try:
            files, path = url_to_fs(url)
            file = stack.enter_context(files.open(path, "rb"))
            size = int(files.size(path))
        except FileNotFoundError:
            raise PictureError("no such file") from None
        except Exception as error:  # each kind of store has its own
            raise PictureError(reason_of(error)) from None
        yield file, size


def _pieces(file: Any) -> Generator[bytes, None, None]:
    try:
        while piece := file.read(PIECE):
            yield piece
    except Exception as error:  # each kind of store has its own
        raise PictureError(reason_of(error)) from None


@contextmanager
def _ahead(pieces: Generator[bytes, None, None]) -> Iterator[Iterator[bytes]]:
    """`pieces`, read by another thread while those before are worked on."""
    waiting: Queue[Callable[[], bytes]] = Queue(AHEAD)
    over = Event()

    def put(result: Callable[[], bytes]) -> None:
        while not over.is_set():
            try:
                return waiting.put(result, timeout=WAIT)
            except Full:
                continue

    def fill() -> None:
        gathered = bytearray()
        end: Callable[[], bytes] = bytes
        try:
            with closing(pieces):
                while not over.is_set() and (piece := next(pieces, b"")):
                    gathered += piece
                    if len(gathered) >= PIECE:
                        put(bytes(gathered).__bytes__)
                        gathered.clear()
        except BaseException as error:  # raised again in the thread that reads
            end = partial(_raise, error)
        if gathered:
            put(bytes(gathered).__bytes__)
        put(end)

    thread = Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield iter(lambda: waiting.get()(), b"")
    finally:
        over.set()


def _raise(error: BaseException) -> bytes:
    raise error
