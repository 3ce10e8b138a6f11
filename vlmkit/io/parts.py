"""Pictures that are made when they are wanted: a page of a document, a frame of a film; and which of them are."""

import io
import os
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from vlmkit.io.records import Record
from vlmkit.io.sources import Bytes, PictureError, Reader, Source, content_hash, reader_of

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = "parts"  # the field of the last part of a file that tells their number, and how they were chosen
MOMENT = 0.001  # seconds; hardly a film has frames that follow each other more quickly
HASHED = 1 << 22  # bytes at a time
OPEN_END = sys.maxsize  # of a range of pages
PAGES = re.compile(r"\s*(\d{1,9})\s*(?:(-)\s*(\d{1,9})?\s*)?")

_hashing = threading.Lock()  # frames of one film come to several threads at once


@dataclass(frozen=True, slots=True)
class Choice:
    """Which parts of documents and films are pictures: `pages`, counted from 1 (None: all); a frame `every` so many
    seconds (None: where the scene changes), at most `frames` of one film (None: no limit)."""

    pages: tuple[range, ...] | None = None
    every: float | None = None
    frames: int | None = None

    def for_question(self, frames: int) -> "Choice":
        """So many frames of a film, evenly, unless it says which."""
        return self if self.every else replace(self, every=MOMENT, frames=self.frames or frames)


@dataclass(frozen=True, slots=True)
class Part(ABC):
    """A page or frame of `file`. `fields` are what is known of it without making it: `page`, `time`, `ocr`, `taken`."""

    file: Source
    fields: Record = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def mtime(self) -> float:
        return self.file.mtime

    @property
    def label(self) -> str:
        """What it is called in a question about several."""
        return f"page {self.fields['page']}" if "page" in self.fields else f"at {self.fields['time']:g} s"

    def details(self) -> Record:
        """Further fields, which take time to read, such as `ocr`."""
        return {}

    @abstractmethod
    def image(self, size: int | None = None) -> "tuple[Image, int, int]":
        """(RGB picture, width, height), upright; as `io.images.open_picture`. With `size` no side need be longer than
        1.6 times that, where the other is not shorter; width and height are those without. Raises PictureError."""

    def read(self) -> bytes:
        """The picture as PNG. Raises PictureError."""
        written = io.BytesIO()
        self.image()[0].save(written, "PNG", compress_level=1)
        return written.getvalue()


def page_ranges(text: str) -> tuple[range, ...]:
    """The pages in `1-5,7,10-`, counted from 1. Raises ValueError."""
    found = []
    for part in text.split(","):
        match = PAGES.fullmatch(part)
        first = int(match[1]) if match else 0
        last = OPEN_END - 1 if match and match[2] and not match[3] else int(match[3] or first) if match else 0
        if not 0 < first <= last:
            raise ValueError(f"{part.strip()!r} is not a page or a range such as 1-5, from 1 on")
        found.append(range(first, last + 1))
    return tuple(found)


def file_url(path: str) -> str:
    """The file: URL of a path; of a page or moment that of its file, with the part behind it, which browsers take."""
    file, mark, part = path.rpartition("#")
    if not mark or os.path.lexists(path) or reader_of(file) is None:
        file, part = path, ""
    return f"file://{quote(os.fsencode(file))}{mark and part and '#' + part}"


class ChoosingReader(Reader, Protocol):
    """A reader of documents or films, whose members are `Part`s. `chosen_by` names the fields of Choice that it heeds.

    Optional: `is_quick` is False where members are known by decoding alone, so that nobody should count them first, and
    those of a file that an index has are not sought again; `belongs_to_photo(path)` whether a file in a folder counts
    as the photo beside it, and is passed over.
    """

    chosen_by: tuple[str, ...]

    def chosen(self, file: Source, choice: Choice) -> Iterator[tuple[str, Bytes]]:
        """As `members`, which are those of Choice()."""


def counted(
    parts: Iterator[tuple[str, Bytes]], by: dict[str, Any]
) -> Iterator[tuple[str, Bytes, dict[str, Any] | None]]:
    """`parts`, the last one, if all could be read, with their number and how they were chosen: so it is known later
    that none is missing."""
    number, before = 0, None
    try:
        for part in parts:
            if before:
                yield *before, None
            number, before = number + 1, part
    except PictureError:
        if before:
            yield *before, None
        raise
    if before:
        yield *before, {"count": number, **by}


def chosen_by(reader: Reader, choice: Choice) -> dict[str, Any]:
    """What of `choice` matters to a reader, as JSON has it."""
    names = getattr(reader, "chosen_by", ())
    found = {name: getattr(choice, name) for name in names}
    return {name: str(value) if isinstance(value, tuple) else value for name, value in found.items() if value}


def file_hash(file: Source) -> str:
    """The `hash` of all parts of a file: 32 hex digits of XXH3 over its bytes, which are read a piece at a time."""
    with _hashing:
        return _file_hash(file)


@lru_cache(maxsize=64)
def _file_hash(file: Source) -> str:
    from xxhash import xxh3_128

    found, left = xxh3_128(), file.size
    try:
        with open(file.path, "rb") as stream:
            stream.seek(file.offset)
            while left and (data := stream.read(min(HASHED, left))):
                found.update(data)
                left -= len(data)
    except OSError as error:
        raise PictureError(error.strerror or str(error)) from None
    return found.hexdigest()


def hash_of(source: Bytes) -> str:
    """The `hash` of a record of this source: of the bytes of its file, a tar's member being one. Raises PictureError.

    No page or frame is made for it: parts of one file are told apart by what stands behind `#` in their names.
    """
    return file_hash(source.file) if isinstance(source, Part) else content_hash(source.read())
