"""The index follows files to new names: of a record that came with MOVED_FROM the old one goes."""

from vlmkit.index.changed import MOVED_FROM
from vlmkit.index.reader import Index
from vlmkit.index.writer import Writer
from vlmkit.io.records import Record, batched
from vlmkit.io.sources import UnreadContainer, is_gone

REMOVED = 10_000  # in one commit
FILES = 1000  # whose records are looked for at a time


def is_in_place(record: Record) -> bool:
    """Whether `Moves.note` has nothing to do with the record."""
    return MOVED_FROM not in record and _version(record) is None


class Moves:
    """Old ids of records that were added, each with the `hash` of its content; and the files that pages and frames were
    added of, each with its own."""

    def __init__(self) -> None:
        self._hashes: dict[str, object] = {}
        self._files: dict[str, str] = {}

    def note(self, record: Record) -> Record:
        """`record` without MOVED_FROM."""
        before = record.pop(MOVED_FROM, None)
        if isinstance(before, str) and before != record.get("id"):
            self._hashes[before] = record.get("hash")
        if (version := _version(record)) is not None:
            self._files[version[0]] = version[1]
        return record

    def settle(self, writer: Writer) -> int:
        """Drop the old records of the same content whose file is gone; call it after a commit. Returns their number."""
        removed = 0
        for some in batched(self._hashes.items(), REMOVED):
            with Index(writer.folder) as index:
                rows = [(key, None) for key, digest in some if _is_left(index.get(key), digest)]
            removed += len(writer.remove(rows)) if rows else 0
        return removed

    def drop_former(self, writer: Writer) -> int:
        """Drop pages and frames of what these files held before; call it after a commit. Returns their number."""
        removed = 0
        for some in batched(self._files.items(), FILES):
            with Index(writer.folder) as index:
                former = [
                    (str(record["id"]), None)
                    for file, digest in some
                    for record in index.under(f"{file}#")
                    if (version := _version(record)) is not None and version[0] == file and version[1] != digest
                ]
            removed += len(writer.remove(former)) if former else 0
        return removed


def _version(record: Record) -> tuple[str, str] | None:
    """The file of which this is a page or frame, and its `hash`; None for another record."""
    image, digest = record.get("image"), record.get("hash")
    if not ("page" in record or "time" in record) or not isinstance(image, str) or not isinstance(digest, str):
        return None
    file, mark, _ = image.rpartition("#")
    return (file, digest) if mark else None


def _is_left(record: Record | None, digest: object) -> bool:
    image = record.get("image") if record and record.get("hash") == digest else None
    try:
        return isinstance(image, str) and is_gone(image)
    except UnreadContainer:
        return False
