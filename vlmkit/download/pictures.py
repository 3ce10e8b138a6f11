"""Pictures by URL, as files of a folder: named by their URL, complete or not at all, and not fetched again.

What is there stays: another list adds to it.
"""

import hashlib
import io
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from vlmkit.download.url_list import Row
from vlmkit.io.executor import ahead
from vlmkit.io.files import atomic_write
from vlmkit.io.http import FETCHERS, Headers, HttpClient
from vlmkit.io.images import open_picture
from vlmkit.io.pillow_plugins import HEIC_BRANDS
from vlmkit.io.records import Failed, Record
from vlmkit.io.samples import is_divided_name
from vlmkit.io.sources import Memory, MissingExtra, PictureError, members, missing_extra

# The defaults of img2dataset's --disallowed_header_directives (Beaumont, 2021).
DISALLOWED = {"noai", "noimageai", "noindex", "noimageindex"}
PER_HOST = 4  # pictures at a time
AHEAD = 4 * FETCHERS  # pictures that wait for an earlier one
JPEG_QUALITY = 95  # of a picture that was made smaller
SUFFIXES = {
    **{"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"},
    **{"AVIF": "avif", "HEIF": "heic", "JPEG2000": "jp2", "PPM": "ppm"},
}


OTHER_SUFFIXES = ("svg", "raw")  # of what Pillow does not read
# Of documents and films: where they begin as all of a kind do, and the suffix of that kind.
DIVIDED = ((0, b"%PDF-", "pdf"), (4, b"ftyp", "mp4"), (0, b"\x1aE\xdf\xa3", "mkv"), (8, b"AVI ", "avi"))


class Picture(NamedTuple):
    """A picture as it is kept: its bytes, the suffix of their format, and its size in pixels, upright.

    Of a document or film the size of the first page or frame.
    """

    data: bytes
    suffix: str
    width: int
    height: int


def refusal(headers: Headers) -> str | None:
    """Why a picture with these headers must not be used (X-Robots-Tag, as img2dataset reads it); None if it may be.

    A directive may be for one user agent, `googlebot: noindex`: it counts if that is vlmkit.
    """
    for entry in headers.get("X-Robots-Tag", "").lower().split(","):
        agent, colon, rest = entry.partition(":")
        directive = (rest if colon else agent).strip()
        if directive in DISALLOWED and (not colon or agent.strip() in ("*", "vlmkit")):
            return f"its server asks not to use it (X-Robots-Tag: {directive})"
    return None


class _Limiter:
    """Lets `limit` threads at a time work for each name."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._semaphores: WeakValueDictionary[str, threading.Semaphore] = WeakValueDictionary()
        self._lock = threading.Lock()

    def of(self, name: str) -> threading.Semaphore:
        with self._lock:
            return self._semaphores.setdefault(name, threading.Semaphore(self._limit))


class PictureFetcher:
    """Fetches the pictures of rows.

    A picture with a side of more than `max_side` pixels is made smaller. With `only`, no rows but those with these ids
    are fetched.
    """

    def __init__(self, client: HttpClient, max_side: int | None = None, only: Collection[str] | None = None) -> None:
        self._client = client
        self._max_side = max_side
        self._only = only
        self._hosts = _Limiter(PER_HOST)
        self._urls = _Limiter(1)

    def fetch(self, row: Row) -> Picture | None:
        """The picture of `row`, decoded as a check; None if it must not be fetched. Raises PictureError."""
        if self._only is not None and row.id not in self._only:
            return None
        with self._hosts.of(urlsplit(row.url).netloc.lower()):
            data = self._client.fetch(row.url, refusal).read()
        return _resized(data, self._max_side)

    def save(self, row: Row, folder: Path) -> Record | None:
        """The record of the picture of `row`, fetched into `folder` unless it is there. Raises PictureError."""
        with self._urls.of(row.url):
            if (found := _kept(folder, row.url)) is None:
                picture = self.fetch(row)
                if picture is None:
                    return None
                path = folder / f"{_key_of(row.url)}.{picture.suffix}"
                write_picture(path, picture.data)
                found = path, picture.width, picture.height
        path, width, height = found
        return row.done(str(path), width, height, path.stat().st_size)


def _key_of(url: str) -> str:
    """The name of the file of the picture at `url`: 20 hex digits of its SHA-256."""
    return hashlib.sha256(url.encode()).hexdigest()[:20]


def _kept(folder: Path, url: str) -> tuple[Path, int, int] | None:
    """(file, width, height) of the picture at `url`, if `folder` has all of it."""
    for suffix in dict.fromkeys([*SUFFIXES.values(), *OTHER_SUFFIXES, *(suffix for _, _, suffix in DIVIDED)]):
        path = folder / f"{_key_of(url)}.{suffix}"
        if path.exists():
            try:
                divided = is_divided_name(path.name)
                width, height = _first_size(path) if divided else open_picture(Memory(path.read_bytes()), 1)[1:]
            except PictureError:
                return None
            return path, width, height
    return None


def _first_size(path: Path) -> tuple[int, int]:
    """Width and height of the first page or frame of the document or film at `path`. Raises PictureError."""
    for _, source in members(str(path)):
        return open_picture(source, 1)[1:]
    raise PictureError("nothing in it can be read")


def _resized(data: bytes, max_side: int | None) -> Picture:
    """`data` as it is, or as a smaller JPEG where a side has more than `max_side` pixels. Raises PictureError."""
    from PIL import Image

    try:
        image, width, height = open_picture(Memory(data))
    except PictureError:
        if (divided := _divided(data)) is None:
            raise
        return divided
    if max_side is not None and max(width, height) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=JPEG_QUALITY)
        return Picture(out.getvalue(), "jpg", *image.size)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            suffix = SUFFIXES[opened.format or ""]
    except (Image.UnidentifiedImageError, KeyError):  # one of another decoder's
        suffix = OTHER_SUFFIXES[b"<svg" not in data[:4096].lower()]
    return Picture(data, suffix, width, height)


def _divided(data: bytes) -> Picture | None:
    """`data` if that is a document or film; None for anything else. Raises PictureError where it cannot be read."""
    for at, start, suffix in DIVIDED:
        if data.startswith(start, at) and data[8:12] not in HEIC_BRANDS:
            if (extra := missing_extra(f".{suffix}")) is not None:
                raise MissingExtra(extra)
            with NamedTemporaryFile(suffix=f".{suffix}") as file:
                file.write(data)
                file.flush()
                return Picture(data, suffix, *_first_size(Path(file.name)))
    return None


def write_picture(path: Path, data: bytes) -> None:
    """Raises PictureError. A crash of the machine may leave an empty file, which is found when it is opened."""
    try:
        with atomic_write(path, durable=False) as file:
            file.write(data)
    except OSError as error:
        raise PictureError(f"cannot be written: {error.strerror}") from None


def into_folder(rows: Iterable[Row | Failed], folder: Path, fetcher: PictureFetcher) -> Iterator[Record | Failed]:
    """The records of `rows` in their order, with pictures in `folder`/images; what `only` excludes is left out."""
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)

    def save(row: Row | Failed) -> Record | Failed | None:
        if isinstance(row, Failed):
            return row
        try:
            return fetcher.save(row, pictures)
        except PictureError as error:
            return row.failed(error)

    return (done for done in ahead(rows, save, FETCHERS, AHEAD) if done is not None)
