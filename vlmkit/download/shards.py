"""Pictures by URL, as webdataset shards: what the shards of a folder hold stays, and what is new comes to it."""

import io
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from vlmkit.download.pictures import AHEAD, Picture, PictureFetcher
from vlmkit.download.records_file import digest, row_key
from vlmkit.download.url_list import Row
from vlmkit.io.executor import ahead
from vlmkit.io.files import atomic_write
from vlmkit.io.http import FETCHERS
from vlmkit.io.records import Failed, Record, dumps, loads
from vlmkit.io.sources import Bytes, PictureError, members, open_source


def into_shards(
    rows: Iterable[Row | Failed], folder: Path, fetcher: PictureFetcher, size: int
) -> Iterator[Record | Failed]:
    """The records of `rows` in their order, with their pictures in `folder`/00000.tar and so on, `size` in each.

    A member KEY.jpg and a member KEY.json is a row. Rows that are in a shard stay where they are; new ones fill the
    shards that have room, then new shards. A damaged shard fails, stays as it is, and its lost pictures come to others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _Shards(folder, size) as shards:
        yield from shards.damaged

        def fetch(row: Row | Failed) -> tuple[Row | Failed, Picture | None]:
            if isinstance(row, Failed) or shards.find(row):
                return row, None
            try:
                return row, shards.picture_of(row) or fetcher.fetch(row)
            except PictureError as error:
                return row.failed(error), None

        for row, picture in ahead(rows, fetch, FETCHERS, AHEAD):
            if isinstance(row, Failed):
                shards.leave_room()
                yield row
            elif found := shards.find(row):
                yield found
            elif picture is not None:
                yield shards.add(row, picture)


class _Member(NamedTuple):
    """A picture in a shard: its path, its size in pixels and in bytes."""

    image: str
    width: int
    height: int
    size: int


class _Shards:
    """The shards of a folder: which rows they hold, and room for more.

    One shard at a time is written, as a whole: it gets its name when it is full, or at the end of the `with` block.
    What they hold takes about 500 bytes of memory a picture.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._held: dict[int, _Member] = {}
        self._by_url: dict[int, _Member] = {}
        self._room: list[tuple[int, int, int]] = []  # number of a shard, its pictures, the number of the next one
        self.damaged: list[Failed] = []
        numbers = (path.stem for path in folder.glob("*.tar") if re.fullmatch(r"\d{5,}", path.stem))
        self._next = -1
        for self._next in sorted(map(int, numbers)):
            self._read(self._next)
        self._next += 1
        self._stack = ExitStack()
        self._tar: tarfile.TarFile | None = None
        self._number = self._count = self._following = 0

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05}.tar"

    def _read(self, number: int) -> None:
        """Learn what a shard holds. It has room if it is intact and all of it was written here."""
        path = self._path(number)
        pictures: dict[str, tuple[str, Bytes]] = {}
        count, following, is_own = 0, 0, True
        try:
            for name, source in members(str(path)):
                key, _, suffix = name.partition(".")
                if suffix != "json":
                    is_own = is_own and key not in pictures
                    pictures[key] = name, source
                    continue
                try:
                    fields: Any = loads(source.read())
                    url, width, height = fields["url"], fields["width"], fields["height"]
                    image, picture = pictures.pop(key)
                    following = max(following, int(key.removeprefix(path.stem)) + 1)
                except (ValueError, KeyError, TypeError):
                    is_own = False
                    continue
                count += 1
                member = _Member(f"{path}/{image}", width, height, picture.size)
                self._held[row_key(fields)] = self._by_url[digest(url.encode())] = member
        except PictureError as error:
            remedy = "what it lost is fetched again, into other shards"
            self.damaged.append(Failed(str(path), str(path), str(error), remedy))
            return
        if is_own and not pictures and count < self._size:
            self._room.append((number, count, following))

    def find(self, row: Row) -> Record | None:
        """The record of a row that a shard holds already."""
        member = self._held.get(row_key({"id": row.id, **row.record, "url": row.url}))
        return None if member is None else row.done(*member)

    def picture_of(self, row: Row) -> Picture | None:
        """The picture of a row whose URL is that of another row in a finished shard. Raises PictureError."""
        member = self._by_url.get(digest(row.url.encode()))
        if member is None:
            return None
        suffix = member.image.rpartition(".")[2]
        return Picture(open_source(member.image).read(), suffix, member.width, member.height)

    def add(self, row: Row, picture: Picture) -> Record:
        """Put a picture into a shard; its record."""
        tar = self._tar or self._open()
        key = f"{self._number:05}{self._following:0{len(str(self._size - 1))}}"
        name = f"{key}.{picture.suffix}"
        facts = picture.width, picture.height, len(picture.data)
        record = row.done(f"{self._path(self._number)}/{name}", *facts)
        _add(tar, name, picture.data)
        _add(tar, f"{key}.json", dumps({k: v for k, v in record.items() if k not in ("image", "bytes")}))
        self._held[row_key(record)] = _Member(record["image"], *facts)
        self.leave_room()
        return record

    def leave_room(self) -> None:
        """Count a row to the shard that is being written: a later run finds room there for one whose picture failed."""
        if self._tar is not None:
            self._count += 1
            self._following += 1
            if self._count == self._size:
                self._close()

    def _open(self) -> tarfile.TarFile:
        if self._room:
            self._number, self._count, self._following = self._room.pop(0)
        else:
            self._number, self._count, self._following = self._next, 0, 0
            self._next += 1
        path = self._path(self._number)
        file = self._stack.enter_context(atomic_write(path, "w+b", durable=False))
        if self._count:
            with open(path, "rb") as old:
                shutil.copyfileobj(old, file)
            file.seek(0)
        mode: Any = "a" if self._count else "w"
        tar = tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT)  # noqa: SIM115 (closed by the stack)
        self._tar = self._stack.enter_context(tar)
        return tar

    def _close(self) -> None:
        self._tar = None
        self._stack.close()

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A tar member without time and owner, so that equal pictures give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
