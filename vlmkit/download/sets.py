"""Data sets by name: fetched as far as needed, then their records."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.download.bars import Bars
from vlmkit.download.part import TransferError
from vlmkit.download.pictures import write_whole
from vlmkit.download.store import Store
from vlmkit.download.transfer import mirrored
from vlmkit.errors import VlmkitError
from vlmkit.images import ahead, check_picture
from vlmkit.records import Failed, Record
from vlmkit.sources import Memory, PictureError
from vlmkit.urls import FETCHERS, Web


def split_of(data: DataSet, name: str | None) -> tuple[str, Split]:
    """The split called `name`; without a name the usual one. Raises VlmkitError."""
    if name is None:
        return next(iter(data.splits.items()))
    if name not in data.splits:
        raise VlmkitError(f"{data.name} has no split {name}", f"choose one of {', '.join(data.splits)}")
    return name, data.splits[name]


def needed(split: Split, limit: int | None) -> tuple[File, ...]:
    """The files to fetch; with a limit no archives of pictures, where single ones can be fetched."""
    return split.files if limit is not None and split.single else (*split.files, *split.pictures)


def check_room(files: list[File], store: Store) -> None:
    """Raise VlmkitError where the disk has no room for those of `files` that are still to come, as far as known."""
    size = sum(file.size or 0 for file in files if not store.has(file))
    place = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise VlmkitError(
            f"{size:,} bytes are to come, and {place} has room for {free:,}", "free some, or name a --dir"
        )


def bring(files: tuple[File, ...], store: Store, bars: Bars) -> Iterator[Failed]:
    """Fetch `files`; yields those that cannot be fetched, by their URL."""
    for file in files:
        try:
            store.bring(file, bars)
        except TransferError as error:
            yield Failed(file.path, file.url, str(error))
        except OSError as error:
            yield Failed(file.path, file.url, error.strerror or str(error))


def records(
    name: str, split: Split, store: Store, limit: int | None, web: Web, mirror: str | None
) -> Iterator[Record | Failed]:
    """The records of a split of the data set `name` whose files are there, at most `limit`, with absolute `image`.

    Where pictures are not there and can be fetched one by one, that is done. Raises VlmkitError where the files are not
    of the form that the data set has.
    """
    root = store.root.absolute()
    found = islice(_converted(name, split, root), limit)
    fetches = split.single is not None and (not split.pictures or not all(map(store.has, split.pictures)))
    if not fetches:
        yield from (_placed(record, root) for record in found)
        return

    def with_picture(record: Record | Failed) -> Record | Failed:
        if isinstance(record, Failed) or "image" not in record:
            return record
        path = root / record["image"]
        assert split.single is not None
        try:
            if not path.exists():
                data = web.fetch(mirrored(split.single(record["image"]), mirror)).read()
                check_picture(Memory(data))
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, data)
        except PictureError as error:
            return Failed(record["id"], str(path), str(error))
        return _placed(record, root)

    yield from ahead(found, with_picture, FETCHERS, 4 * FETCHERS)


def _converted(name: str, split: Split, root: Path) -> Iterator[Record | Failed]:
    try:
        yield from split.records(root)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        what = f"the files of {name} are not of the form they had ({type(error).__name__}: {error})"
        raise VlmkitError(what, f"look at them in {root}; vlmkit download {name} --verify") from None


def _placed(record: Record | Failed, root: Path) -> Record | Failed:
    if isinstance(record, Failed) or "image" not in record:
        return record
    return {**record, "image": str(root / record["image"])}
