"""What files become in INPUT: a picture one item, a folder and a container an item for each picture in it."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from vlmkit.io.parts import PARTS, Part, chosen_by, counted
from vlmkit.io.passing import PassingSamples
from vlmkit.io.reading import Item, Reading, Uncounted
from vlmkit.io.records import Failed, Record
from vlmkit.io.samples import Sample, Unread, is_divided_name, read_samples
from vlmkit.io.sources import (
    Bytes,
    NoPictures,
    PictureError,
    Reader,
    Source,
    StreamReader,
    is_uri,
    open_file,
    open_source,
    reader_of,
)
from vlmkit.io.walk import Walk


def folder_items(folder: str, how: Reading) -> Iterator[Item | Failed]:
    """Pictures and members of containers under `folder`, in the order of their paths."""
    for found in Walk(folder, how.walk, how.left_out):
        if isinstance(found, OSError):
            yield failed(os.fsdecode(found.filename), found.strerror or found)
        elif (reader := reader_of(found)) is None:
            yield picture_item(found)
        elif getattr(reader, "belongs_to_photo", lambda _: False)(found):
            how.left_out.live += 1
        else:
            yield from container_items(found, reader, how, how.left_out.note)


def container_items(
    path: str, reader: Reader, how: Reading, on_none: Callable[[str], None] | None = None
) -> Iterator[Item | Failed]:
    """The pictures in the file at `path`; where there are none in it `on_none` gets the path, else it fails."""
    try:
        file = open_file(path)
        if reader.holds_files:
            yield from _samples(path, reader, file, how)
        else:
            yield from _parts(path, reader, file, how)
    except PictureError as error:
        if on_none is not None and isinstance(error, NoPictures):
            on_none(path)
        else:
            yield failed(path, error, error.remedy)
    except OSError:
        yield failed(path, why_not_regular(path))


def _parts(path: str, reader: Reader, file: Source, how: Reading) -> Iterator[Item | Failed]:
    """The pages of a document, the frames of a film; of one that is `known` without looking for them."""
    chosen = getattr(reader, "chosen", None)  # of a ChoosingReader
    found = chosen(file, how.choice) if chosen else reader.members(file)
    marked: Iterable[tuple[str, Bytes, Any]] = ((name, source, None) for name, source in found)
    if not getattr(reader, "is_quick", True):
        if how.counting:
            raise Uncounted
        by = chosen_by(reader, how.choice)
        known = how.known(path, file, by) if how.known else None
        marked = (
            counted(found, by) if known is None else ((name, reader.open(file, name), mark) for name, mark in known)
        )
    for name, source, mark in marked:
        item = picture_item(f"{path}{reader.separator}{name}", source)
        if mark and isinstance(item, Item):
            item.record[PARTS] = mark
        yield complete(item, how)


def _samples(path: str, reader: Reader, file: Source, how: Reading) -> Iterator[Item | Failed]:
    skips, on_other = how.walk.skips_within, how.left_out.note
    samples = read_samples(path, reader, file, skips=skips, on_other=on_other, has_fields=how.has_fields)
    return _items_of(samples, how)


def shard_items(url: str, reader: StreamReader, how: Reading) -> Iterator[Item | Failed]:
    samples = PassingSamples(how.walk.skips_within, how.left_out.note, how.has_fields, how.on_shard)
    return _items_of(samples.of_url(url, reader, how.allow_private), how)


def _items_of(samples: Iterable[Sample | Unread], how: Reading) -> Iterator[Item | Failed]:
    for found in samples:
        if isinstance(found, Unread):
            yield failed(*found)
        elif is_divided_name(found.path) and isinstance(found.source, Source):
            yield from _parts_of_member(found, found.source, how)
        else:
            item = picture_item(found.path, found.source)
            if isinstance(item, Item):
                item.fields = found.fields
            yield complete(item, how)


def _parts_of_member(found: Sample, file: Source, how: Reading) -> Iterator[Item | Failed]:
    """The pages or frames of a member, each with the fields of its side-cars."""
    reader = reader_of(found.path)
    assert reader is not None
    try:
        for item in _parts(found.path, reader, file, replace(how, puts_off_fields=True)):
            if isinstance(item, Item) and isinstance(item.source, Part):
                item.fields = partial(_with_details, item.source, found.fields)
            yield complete(item, how)
    except PictureError as error:
        yield failed(found.path, error, error.remedy)


def _with_details(part: Part, fields: Callable[[], Record]) -> Record:
    return part.details() | fields()


def picture_item(path: str, source: Bytes | None = None) -> Item | Failed:
    try:
        path.encode()
    except UnicodeEncodeError:
        return failed(path, "the file name is not UTF-8", "rename it")
    if isinstance(source, Part):
        return Item({"id": path, "image": path, **source.fields}, source, source.details)
    return Item({"id": path, "image": path}, source)


def part_at(path: str) -> Part | None:
    """The page or frame that `path` names; None for something else, and for what cannot be opened."""
    if is_uri(path) or "#" not in path:
        return None
    try:
        source = open_source(path)
    except PictureError:
        return None
    return source if isinstance(source, Part) else None


def complete(item: Item | Failed, how: Reading) -> Item | Failed:
    if isinstance(item, Item) and how.has_fields and not how.puts_off_fields:
        item.complete()
    return item


def failed(path: str, error: object, remedy: str = "") -> Failed:
    name = os.fsencode(path).decode(errors="backslashreplace")
    return Failed(name, name, str(error), remedy)


def why_not_regular(path: str) -> str:
    try:
        open_source(path)
    except PictureError as error:
        return str(error)
    return "not a regular file"
