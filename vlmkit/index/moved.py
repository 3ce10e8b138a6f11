"""The index follows files to new names: of a record that came with MOVED_FROM the old one goes."""

from vlmkit.index.changed import MOVED_FROM
from vlmkit.index.reader import Index
from vlmkit.index.writer import Writer
from vlmkit.io.records import Record, batched
from vlmkit.io.sources import UnreadContainer, is_gone

REMOVED = 10_000  # in one commit


def is_in_place(record: Record) -> bool:
    """Whether `Moves.note` leaves the record as it is."""
    return MOVED_FROM not in record


class Moves:
    """Old ids of records that were added, each with the `hash` of its content."""

    def __init__(self) -> None:
        self._hashes: dict[str, object] = {}

    def note(self, record: Record) -> Record:
        """`record` without MOVED_FROM."""
        before = record.pop(MOVED_FROM, None)
        if isinstance(before, str) and before != record.get("id"):
            self._hashes[before] = record.get("hash")
        return record

    def settle(self, writer: Writer) -> int:
        """Drop the old records of the same content whose file is gone; call it after a commit. Returns their number."""
        removed = 0
        for some in batched(self._hashes.items(), REMOVED):
            with Index(writer.folder) as index:
                rows = [(key, None) for key, digest in some if _is_left(index.get(key), digest)]
            removed += len(writer.remove(rows)) if rows else 0
        return removed


def _is_left(record: Record | None, digest: object) -> bool:
    image = record.get("image") if record and record.get("hash") == digest else None
    try:
        return isinstance(image, str) and is_gone(image)
    except UnreadContainer:
        return False
