"""Films and documents that an index holds whole: what is unchanged is not opened, what was moved keeps its vectors."""

from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.index.changed import Contents, Kept, same
from vlmkit.index.reader import Index, NoIndex
from vlmkit.io.inputs import Item
from vlmkit.io.parts import file_hash
from vlmkit.io.records import Record
from vlmkit.io.sources import PictureError, Source, file_facts

Parts = list[tuple[int, Record]]  # slots and records


class KnownParts:
    """For `Reading.known`: items of the parts of a file that is known by content, none where it is unchanged.

    A file counts as known where the index has all of its parts, chosen in the same way. `unchanged` counts files.
    """

    def __init__(self, folder: Path, contents: Contents) -> None:
        self._folder, self._contents = folder, contents
        self.unchanged = 0

    def __call__(self, path: str, file: Source, by: dict[str, Any]) -> list[Item] | None:
        try:
            with Index(self._folder) as index:
                return self._look(index, path, file, by)
        except (NoIndex, PictureError):  # who opens the file says what is wrong with it
            return None

    def _look(self, index: Index, path: str, file: Source, by: dict[str, Any]) -> list[Item] | None:
        facts = file_facts(file)
        own = index.under(f"{path}#")
        is_own = _are_all(own, by)
        if is_own and all(same(record, facts, "mtime", "bytes", "ctime") for _, record in own):
            self.unchanged += 1
            return []
        if not self._contents.has_size(index, file.size):
            return None
        facts["hash"] = file_hash(file)

        def is_it(record: Record) -> bool:
            return record.get("hash") == facts["hash"]

        if not (is_own and all(is_it(record) for _, record in own)):
            slot = self._contents.slot(index, facts["hash"])
            other = index.record(slot)["image"].rpartition("#")[0] if slot is not None else ""
            own = [(slot, record) for slot, record in index.under(f"{other}#") if is_it(record)] if other else []
            if not _are_all(own, by):
                return None
        return [_moved(index, slot, record, path, facts, number > 0) for number, (slot, record) in enumerate(own)]


def _are_all(parts: Parts, by: dict[str, Any]) -> bool:
    """Whether none of the parts of a file that were chosen in this way is missing."""
    wanted = [record["parts"] for _, record in parts if isinstance(record.get("parts"), dict)]
    return any({**found, "count": 0} == {**by, "count": 0} and len(parts) >= found.get("count", 0) for found in wanted)


def _moved(index: Index, slot: int, record: Record, path: str, facts: Record, is_further: bool) -> Item:
    """The record of a part as one of the file at `path`."""
    image = f"{path}#{record['image'].rpartition('#')[2]}"
    vector = {"model": index.state.model, "embedding": np.array(index.vectors[slot])}
    return Kept(record | {"id": image, "image": image} | facts | vector, is_further=is_further)
