"""What a server says about the use of its pictures: the header X-Robots-Tag, as img2dataset reads it.

Pictures by URL, fetched into a folder: named by their URL, so what is there is not fetched again.

Files are written whole or not at all, so a run that was killed goes on where it stood. Hosts are asked for a few
pictures at a time each.

Lists of URLs: records with `url` become pictures in a folder, or webdataset shards, and records of them.
"""

import contextlib
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from vlmkit.errors import VlmkitError
from vlmkit.io.http import FETCHERS, Headers, HttpClient, is_url
from vlmkit.io.images import ahead, open_picture
from vlmkit.io.inputs import records_of
from vlmkit.io.records import Failed, Record, batched, dumps, loads
from vlmkit.io.sources import Memory, PictureError, Source, locate, members

# The defaults of img2dataset's --disallowed_header_directives (Beaumont, 2021).
REFUSED = {"noai", "noimageai", "noindex", "noimageindex"}


def refused(headers: Headers) -> str | None:
    """Why a picture with these headers is not to be used; None if it may be.

    A directive may be for one user agent, `googlebot: noindex`: it counts if that is vlmkit.
    """
    for entry in headers.get("X-Robots-Tag", "").lower().split(","):
        agent, colon, rest = entry.partition(":")
        directive = rest if colon else agent
        if directive.strip() in REFUSED and (not colon or agent.strip() in ("*", "vlmkit")):
            return f"its server asks not to use it (X-Robots-Tag: {directive.strip()})"
    return None


PER_HOST = 4  # pictures at a time
QUALITY = 95  # of a JPEG that was made smaller
SUFFIXES = {
    **{"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"},
    **{"AVIF": "avif", "HEIF": "heic", "JPEG2000": "jp2", "PPM": "ppm"},
}


class Picture(NamedTuple):
    """A picture as it is kept: its bytes, the suffix of their format, and its size in pixels, upright."""

    data: bytes
    suffix: str
    width: int
    height: int


class _Named:
    """A lock, or a semaphore, that lives as long as somebody uses it."""

    def __init__(self, places: int) -> None:
        self.places = threading.Semaphore(places)


class _Turns:
    """At most `places` at a time for each name."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._known: WeakValueDictionary[str, _Named] = WeakValueDictionary()
        self._lock = threading.Lock()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        with self._lock:
            mine = self._known.get(name)
            if mine is None:
                mine = self._known[name] = _Named(self._places)
        with mine.places:
            yield


class Fetcher:
    """Fetches pictures with `client`; the longest side has at most `longest` pixels, if that is told."""

    def __init__(self, client: HttpClient, longest: int | None = None) -> None:
        self._client = client
        self._longest = longest
        self._hosts = _Turns(PER_HOST)
        self._urls = _Turns(1)

    def picture(self, url: str) -> Picture:
        """The picture at `url`: told by its content, decoded to see that it is whole. Raises PictureError."""
        with self._hosts.of(urlsplit(url).netloc.lower()):
            data = self._client.fetch(url, refused).read()
        return shrunk(data, self._longest)

    def into(self, folder: Path, url: str) -> tuple[Path, int, int]:
        """(file, width, height) of the picture at `url`, fetched into `folder` unless it is there.

        Raises PictureError.
        """
        with self._urls.of(url):
            found = kept(folder, url)
            if found is not None:
                return found
            picture = self.picture(url)
            path = folder / f"{key_of(url)}.{picture.suffix}"
            write_whole(path, picture.data)
            return path, picture.width, picture.height


def key_of(url: str) -> str:
    """The name of the file of the picture at `url`: 20 hex digits of its SHA-256."""
    return hashlib.sha256(url.encode()).hexdigest()[:20]


def kept(folder: Path, url: str) -> tuple[Path, int, int] | None:
    """(file, width, height) of the picture at `url`, if `folder` has it, whole."""
    for suffix in dict.fromkeys(SUFFIXES.values()):
        path = folder / f"{key_of(url)}.{suffix}"
        if path.exists():
            try:
                _, width, height = open_picture(Memory(path.read_bytes()), 1)
            except PictureError:
                return None
            return path, width, height
    return None


def shrunk(data: bytes, longest: int | None) -> Picture:
    """`data` as it is, or as a smaller JPEG where a side is longer than `longest` pixels. Raises PictureError."""
    from PIL import Image

    image, width, height = open_picture(Memory(data))
    if longest is not None and max(width, height) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=QUALITY)
        return Picture(out.getvalue(), "jpg", *image.size)
    with Image.open(io.BytesIO(data)) as opened:
        return Picture(data, SUFFIXES[opened.format or ""], width, height)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; of a crash of the machine, `kept` takes note."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PictureError(f"cannot be written: {error.strerror}") from None


DEPTH = 4 * FETCHERS  # pictures that wait for an earlier one
Old = dict[str, tuple[Source, str, Record]]


@dataclass(frozen=True, slots=True)
class Row:
    """A record of the list, its id and the URL of its picture."""

    id: str
    url: str
    record: Record

    def fails(self, error: object) -> Failed:
        return Failed(self.id, self.url, str(error))

    def done(self, image: str, width: int, height: int, size: int) -> Record:
        """The record of the picture `image`: what the list says of it, and what it is."""
        found = {"image": image, "bytes": size, "width": width, "height": height}
        return {"id": self.id, **self.record, **found, "url": self.url}


def read_list(path: str) -> Iterator[Row | Failed]:
    """The rows of a list of records: `url`, or `image` where that is a URL. Raises VlmkitError for a missing file."""
    return (_row(record) for record in records_of([path]))


def _row(record: Record | Failed) -> Row | Failed:
    if isinstance(record, Failed):
        return record
    for name in ("url", "image"):
        url = record.get(name)
        if isinstance(url, str) and is_url(url):
            return Row(str(record.get("id", url)), url, {k: v for k, v in record.items() if k != "id"})
    return Failed.of(record, "no url")


def named_in(path: str) -> set[str]:
    """The ids that an `--errors` file names. Raises VlmkitError."""
    rows = list(records_of([path]))
    if any(isinstance(row, Failed) or "id" not in row for row in rows):
        raise VlmkitError(f"{path} is no list of failed records", "name a file that --errors wrote")
    return {row["id"] for row in rows if not isinstance(row, Failed)}


def into_folder(
    rows: Iterable[Row | Failed], folder: Path, fetcher: Fetcher, only: Collection[str] | None
) -> Iterator[Record | Failed]:
    """The records of `rows` in their order, with their pictures in `folder`/images.

    With `only`, of what is not there only these ids are fetched, and the others are left out.
    """
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)

    def work(row: Row | Failed) -> Record | Failed | None:
        if isinstance(row, Failed):
            return row
        try:
            if only is not None and row.id not in only and kept(pictures, row.url) is None:
                return None
            path, width, height = fetcher.into(pictures, row.url)
            return row.done(str(path), width, height, path.stat().st_size)
        except PictureError as error:
            return row.fails(error)

    return (done for done in ahead(rows, work, FETCHERS, DEPTH) if done is not None)


def into_shards(
    rows: Iterable[Row | Failed], folder: Path, fetcher: Fetcher, only: Collection[str] | None, size: int
) -> Iterator[Record | Failed]:
    """The records of `rows` in their order, with their pictures in `folder`/00000.tar and so on.

    `size` rows of the list make a shard: member KEY.jpg and KEY.json a picture. What a shard holds already is taken
    from it; one that gains nothing stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = len(str(size - 1))
    for number, some in enumerate(batched(rows, size)):
        keyed = [(f"{number:05}{i:0{width}}", row) for i, row in enumerate(some)]
        yield from _shard(folder / f"{number:05}.tar", keyed, fetcher, only)


def _shard(
    path: Path, rows: list[tuple[str, Row | Failed]], fetcher: Fetcher, only: Collection[str] | None
) -> list[Record | Failed]:
    old = _samples(path)
    fetch: Callable[[tuple[str, Row | Failed]], tuple[str, Row | Failed, Picture | None]]
    fetch = partial(_sample, old=old, fetcher=fetcher, only=only)
    results: list[Record | Failed] = []
    fresh = False
    temporary = path.with_name(f".{path.name}.part")
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for key, row, picture in ahead(rows, fetch, FETCHERS, DEPTH):
                if isinstance(row, Failed):
                    results.append(row)
                elif picture is not None:
                    fresh |= row.url not in old
                    record = row.done(
                        f"{path}/{key}.{picture.suffix}", picture.width, picture.height, len(picture.data)
                    )
                    results.append(record)
                    _add(tar, f"{key}.{picture.suffix}", picture.data)
                    _add(tar, f"{key}.json", dumps({k: v for k, v in record.items() if k not in ("image", "bytes")}))
        if fresh:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return results


def _sample(
    keyed: tuple[str, Row | Failed], *, old: Old, fetcher: Fetcher, only: Collection[str] | None
) -> tuple[str, Row | Failed, Picture | None]:
    key, row = keyed
    if isinstance(row, Failed):
        return key, row, None
    try:
        if row.url in old:
            source, suffix, fields = old[row.url]
            return key, row, Picture(source.read(), suffix, fields["width"], fields["height"])
        wanted = only is None or row.id in only
        return key, row, fetcher.picture(row.url) if wanted else None
    except PictureError as error:
        return key, row.fails(error), None


def _samples(path: Path) -> Old:
    """The samples of a shard by their URL; none where there is no shard, or it is damaged."""
    pictures: dict[str, tuple[Source, str]] = {}
    found: Old = {}
    with contextlib.suppress(PictureError, ValueError, KeyError):
        for name, source in members(locate(str(path))):
            key, _, suffix = name.partition(".")
            if suffix == "json":
                fields: Any = loads(source.read())
                found[fields["url"]] = (*pictures[key], fields)
            else:
                pictures[key] = (source, suffix)
    return found


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without time and owner, so that the same pictures make the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
