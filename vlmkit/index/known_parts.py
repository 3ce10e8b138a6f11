"""Films that an index holds whole: one that is unchanged is not opened, and one that was moved is not decoded."""

from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import Any

from vlmkit.index.changed import same
from vlmkit.index.contents import Contents, part_of
from vlmkit.index.reader import Index, NoIndex
from vlmkit.io.parts import PARTS, file_hash
from vlmkit.io.records import Record
from vlmkit.io.sources import PictureError, Source, file_facts


class KnownParts:
    """For `Reading.known`: the names of the parts of a file that is known by content, none where it is unchanged.

    A file is known where the index has all of its parts, chosen in the same way, with the fields that it `needs`.
    `unchanged` counts files.
    """

    def __init__(self, folder: Path, contents: Contents, needs: Collection[str] = ()) -> None:
        self._folder, self._contents, self._needs = folder, contents, needs
        self.unchanged = 0

    def __call__(self, path: str, file: Source, by: dict[str, Any]) -> list[tuple[str, Any]] | None:
        try:
            with Index(self._folder) as index:
                return self._look(index, path, file, by)
        except (NoIndex, PictureError):  # who opens the file says what is wrong with it
            return None

    def _look(self, index: Index, path: str, file: Source, by: dict[str, Any]) -> list[tuple[str, Any]] | None:
        facts = file_facts(file)
        own = index.under(f"{path}#")
        if any(name not in record for record in own for name in self._needs):
            return None
        if _are_all(own, by) and all(same(record, facts, "mtime", "bytes", "ctime") for record in own):
            self.unchanged += 1
            return []
        if not self._contents.has_size(index, file.size):
            return None
        same_content = [record for _, record in self._contents.of(index, file_hash(file))]
        for _, group in groupby(sorted(same_content, key=_file_of), _file_of):
            records = sorted(group, key=lambda record: record.get("time", 0))
            if _are_all(records, by):
                return [(part_of(record["image"]), record.get(PARTS)) for record in records]
        return None


def _file_of(record: Record) -> str:
    return str(record["image"]).rpartition("#")[0]


def _are_all(records: list[Record], by: dict[str, Any]) -> bool:
    """Whether none of the parts of a file that were chosen in this way is missing."""
    marks = [mark for record in records if isinstance(mark := record.get(PARTS), dict)]
    return any({**mark, "count": 0} == {**by, "count": 0} and len(records) >= mark.get("count", 0) for mark in marks)
