"""Records without a vector: they add their fields to the records that are in the index, by id."""

from collections.abc import Iterable, Iterator

import numpy as np

from vlmkit.index.reader import Index, NoIndex
from vlmkit.index.writer import Writer
from vlmkit.io.blobs import Block
from vlmkit.io.records import Failed, Record

HELD = 5000  # records that are looked up together
OF_FILE = ("image", "model", "mtime", "bytes", "ctime", "hash")  # as they were when the vector was made
OF_SEARCH = ("query", "query_id", "rank", "score", "relative", "match_line", "match_field")


class Updates:
    """The records without a vector among those for `writer`; `updated` counts the ids that got their fields."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._waiting: list[Record] = []
        self._ids: set[str] = set()  # of those that wait
        self.updated: set[str] = set()

    def completed(self, results: Iterable[Record | Failed | Block]) -> Iterator[Record | Failed | Block]:
        """`results`, blocks as they are; a record without an embedding as that of its id in the index, with its fields
        and that vector.

        These come later than they were read. What is known of the file stays as it was when the vector was made, and
        what a search added is left out. A record whose id is not in the index fails.
        """
        for result in results:
            if isinstance(result, Failed | Block) or "embedding" in result or result.get("id") is None:
                if self._ids and (not isinstance(result, dict) or str(result.get("id")) in self._ids):
                    yield from self._look_up()
                yield result
                continue
            self._waiting.append(result)
            self._ids.add(str(result["id"]))
            if len(self._waiting) >= HELD:
                yield from self._look_up()
        yield from self._look_up()

    def _look_up(self) -> Iterator[Record | Failed]:
        waiting, self._waiting, self._ids = self._waiting, [], set()
        if not waiting:
            return
        self._writer.commit()  # what came before them is in the index, too
        try:
            index = Index(self._writer.folder)
        except NoIndex:
            yield from map(_missing, waiting)
            return
        found: dict[str, Record] = {}
        with index:
            for record in waiting:
                key = str(record["id"])
                slot = index.slot_of(key)
                before = found.get(key) or ({} if slot is None else index.record(slot))
                if slot is None:
                    yield _missing(record)
                elif record.get("image", before.get("image")) != before.get("image"):
                    what = "the record with this id in the index is about another picture"
                    yield Failed.of(record, what, "give it an id of its own")
                else:
                    found[key] = _updated(before, record)
                    yield found[key] | {"embedding": np.array(index.vectors[slot])}
        self.updated |= found.keys()


def _updated(before: Record, record: Record) -> Record:
    """`before` with the fields of `record`."""
    left = {*OF_FILE, *(OF_SEARCH if "query" in record and "rank" in record else ())}
    return before | {name: value for name, value in record.items() if name not in left}


def _missing(record: Record) -> Failed:
    what = "the record has no embedding, and no record in the index has its id"
    remedy = "embed it first: vlmkit embed PICTURES | vlmkit index"
    if "page" in record or "time" in record or "images" in record:
        remedy = "records here are of single pages and frames: ask about each with --each"
    return Failed.of(record, what, remedy)
