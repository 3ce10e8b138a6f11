"""What INPUT is read into, and how: items, each a record with the source of its picture, and the options of reading."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vlmkit.io.blobs import Block
from vlmkit.io.parts import Choice
from vlmkit.io.records import Record
from vlmkit.io.sources import Bytes, PictureError, Source, open_source
from vlmkit.io.walk import LeftOut, WalkOptions


@dataclass(slots=True)
class Item:
    """A record, with the source of its picture where that is known, and what reads fields that are still missing.

    Or, with `Reading.together`, a block of records.
    """

    record: Record
    source: Bytes | None = None
    fields: Callable[[], Record] | None = None
    block: Block | None = None

    def complete(self) -> None:
        """Read the fields of its side-cars, if that was put off."""
        if self.fields is not None:
            self.record |= self.fields()
            self.fields = None

    def locate(self) -> Bytes:
        """The source of this item's picture; one by URL must have been fetched. Raises PictureError."""
        if self.source is None:
            image = self.record["image"]
            if not isinstance(image, str):
                raise PictureError("image is not a path")
            self.source = open_source(image)
        return self.source


class Uncounted(Exception):
    """How many items there are would take as long as reading them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Options of reading INPUT: lines as texts, NUL-terminated lists, the folder for relative `image` fields.

    Without `records` what is piped in is lines, whatever they begin with. With `piped_picture` standard input may also
    be the bytes of one picture, the record `-`. Without `has_fields` the side-cars in tar files are not read.
    `left_out` counts what walks through folders leave out. With `columns` what is not records is a table that has one
    of these columns, or lines that are its values. `one_picture` is for what looks at one picture at a time (see
    `singly`). With `puts_off_fields` side-cars are read by `Item.complete`. Shards by URL come from private addresses
    with `allow_private` alone; with `on_shard`, called with the URL and whether all came, from where they are, and the
    sources are parts of them. `choice` says which pages and frames are pictures.
    `known(path, file, chosen by)` may give names and marks of the frames of a film, none of one that is unchanged, or
    None where they have to be decoded. With `counting` what has to be decoded to be counted raises Uncounted. With
    `together` the records of a safetensors file that are complete, and of which it is true, come as blocks.
    """

    texts: bool = False
    nul: bool = False
    images: str | None = None
    piped_picture: bool = False
    has_fields: bool = True
    columns: tuple[str, ...] = ()
    records: bool = True
    one_picture: bool = False
    together: Callable[[Record], bool] | None = None
    puts_off_fields: bool = False
    allow_private: bool = False
    on_shard: Callable[[str, bool], None] | None = None
    choice: Choice = field(default_factory=Choice)
    known: Callable[[str, Source, dict[str, Any]], Iterable[tuple[str, Any]] | None] | None = None
    counting: bool = False
    walk: WalkOptions = field(default_factory=WalkOptions)
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)
