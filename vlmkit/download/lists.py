"""Lists of URLs: records with `url` become pictures in a folder, or webdataset shards, and records of them."""

import contextlib
import io
import os
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlmkit.download.pictures import Fetcher, Picture, kept
from vlmkit.errors import VlmkitError
from vlmkit.images import ahead
from vlmkit.inputs import records_of
from vlmkit.records import Failed, Record, batched, dumps, loads
from vlmkit.sources import PictureError, Source
from vlmkit.tars import locate, members
from vlmkit.urls import FETCHERS, is_url

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
