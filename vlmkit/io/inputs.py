"""Reads INPUT: files, folders, tar shards and records become one ordered stream of items."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Literal

from vlmkit.errors import VlmkitError
from vlmkit.io.blobs import Block, is_blob, read_blobs, read_blocks
from vlmkit.io.items import (
    complete,
    container_items,
    failed,
    folder_items,
    part_at,
    picture_item,
    shard_items,
    why_not_regular,
)
from vlmkit.io.pictures import FIELDS, is_absolute, is_complete, locate, singly, with_image
from vlmkit.io.reading import Item, Reading, Uncounted
from vlmkit.io.records import Failed, Record, loads, read_json, read_jsonl
from vlmkit.io.samples import is_divided_name
from vlmkit.io.shards import DONE, expand_braces, is_done, outputs_of
from vlmkit.io.similar import no_such_file
from vlmkit.io.sources import (
    MAX_BYTES,
    Memory,
    MissingExtra,
    content_hash,
    exists,
    is_data,
    is_picture,
    is_picture_name,
    is_remote,
    is_uri,
    is_url,
    missing_extra,
    reader_of,
    shard_reader,
)
from vlmkit.io.tables import PARQUET, is_table_name, read_table
from vlmkit.io.tar import COMPRESSED_TAR, is_compressed_tar_name
from vlmkit.io.terminal import LINE_BYTES, read_head, stdin_bytes, stdin_is_terminal, warn
from vlmkit.io.walk import LeftOut

READING = Reading()
BOM = b"\xef\xbb\xbf"
# How a list of texts does not begin, but for texts that are JSON.
RECORD_START = re.compile(rb'\s*(\[\s*[{\]]|\{\s*["}])')


def read_inputs(inputs: list[str], how: Reading = READING) -> Iterator[Item | Failed]:
    """The items of INPUT in order; with none, of standard input. A missing path raises VlmkitError at once."""
    inputs = [name for path in inputs for name in (_shards_by_url(path) if shard_reader(path) else [path])]
    for path in inputs:
        if path != "-" and (not exists(path) or (is_remote(path) and not (is_url(path) or shard_reader(path)))):
            texts = " (texts are piped in: echo TEXT | vlmkit embed --text)" if how.texts else ""
            raise VlmkitError(f"{path}: {_missing(path)}", f"check the name{texts}")
    if how.images is not None and not os.path.isdir(how.images):
        raise VlmkitError(f"{how.images}: no such folder", "check --images")
    if not inputs and stdin_is_terminal():
        raise VlmkitError("no input", "name files or folders, or pipe something in (see --help)")
    return _chain(inputs or ["-"], how)


def records_of(inputs: list[str], how: Reading = READING) -> Iterator[Record | Failed]:
    """The records of INPUT alone, for commands that open no pictures."""
    return (item if isinstance(item, Failed) else item.record for item in read_inputs(inputs, how))


def count_inputs(inputs: list[str], how: Reading = READING) -> int | None:
    """How many items `read_inputs` gives, without opening a picture; None for what is read once (standard input, shards
    by URL) and for films."""
    if not inputs or "-" in inputs or any(map(shard_reader, inputs)):
        return None
    try:
        return sum(1 for _ in _chain(inputs, replace(how, has_fields=False, left_out=LeftOut(), counting=True)))
    except Uncounted:
        return None


def is_one_picture(path: str) -> bool:
    """Whether INPUT `path` stands for one picture, not for a folder, a container, records or standard input."""
    if (
        path == "-"
        or os.path.isdir(path)
        or shard_reader(path)
        or (os.path.lexists(path) and (reader_of(path) or is_table_name(path)))
    ):
        return False
    try:
        head = read_head(path) if os.path.isfile(path) else b""
    except OSError:
        return True
    return _form(head) is None and (bool(head) or is_picture_name(path) or not os.path.isfile(path))


def is_divided(path: str) -> bool:
    """Whether INPUT `path` is a file whose parts are pictures: a document, a film."""
    return is_divided_name(path) and os.path.isfile(path)


def check_outputs(inputs: list[str], output: str | None, errors: str | None, ignore: str | None = None) -> None:
    """Raise VlmkitError where an output file is an input too, or both output files are the same."""
    files = {os.path.realpath(path) for path in inputs if os.path.isfile(path)}
    for path in {output, errors} - {None, "-"}:
        here = os.path.realpath(str(path))
        if here in files and (path == errors or is_picture_name(here)):
            raise VlmkitError(f"{path} would be overwritten, it is an input", "name another file to write")
    for flag, other in {"--errors": errors, "--ignore": ignore}.items():
        if other and output and other != "-" and os.path.realpath(other) == os.path.realpath(output):
            raise VlmkitError(f"-o and {flag} are both {output}", "name two files")


def _chain(inputs: list[str], how: Reading) -> Iterator[Item | Failed]:
    for path in inputs:
        yield from _standard_input(how) if path == "-" else _expand(path, how)


def _standard_input(how: Reading) -> Iterator[Item | Failed]:
    head, stream = stdin_bytes()
    form = None if how.nul or _names_input(head) else _form(head)
    if how.piped_picture and is_picture(head) and not how.nul and not _names_input(head):
        data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            yield Failed("-", None, "more than a picture has (the limit is 1 GiB)")
        else:
            yield Item({"id": "-"}, Memory(data))
    elif form == "blobs" or (form is not None and how.records):
        yield from _records(form, stream, "-", how.images or os.getcwd(), how)
    elif how.columns or (head.startswith(PARQUET) and not how.nul):
        yield from _table(head, stream, "-", how.images or os.getcwd(), how)
    elif b"\0" in head and not how.nul:
        raise _not_lines(head, how)
    elif how.texts:
        yield from map(_text, _lines(stream, how))
    else:
        before = ""  # lines that name nothing
        for path in map(os.fsdecode, _lines(stream, how)):
            if exists(path):
                before = ""
                yield from _expand(path, how)
            else:
                yield failed(path, _missing(path), _hint_at_null(before, path, how))
                before = f"{before}\n{path}".lstrip("\n")[-LINE_BYTES:]


def _not_lines(head: bytes, how: Reading) -> VlmkitError:
    """The error of a stream that starts with `head`, in which there are zeros."""
    first = os.fsdecode(head.partition(b"\0")[0])
    if first.isprintable() if how.texts else exists(first):
        return VlmkitError("standard input has NUL at the ends of names, as find -print0 writes them", "add -0")
    return VlmkitError("standard input is neither records nor names but binary data", "name the file instead")


def _hint_at_null(before: str, path: str, how: Reading) -> str:
    """What to do where a line names nothing, but would with those before it, or was to end in NUL; else nothing."""
    if how.nul:
        return "leave out -0 if each line is a name" if "\n" in path else ""
    one_name = before and exists(f"{before}\n{path}")
    return "names with line breaks need find -print0 and -0" if one_name else ""


def _names_input(head: bytes) -> bool:
    """Whether the first line of a stream that starts with `head` names a file or folder, or leads through a file."""
    line, end, _ = head.removeprefix(BOM).lstrip(b"\r\n").partition(b"\n")
    path = os.fsdecode(line.rstrip(b"\r"))
    if not path or not (end or len(head) < LINE_BYTES):
        return False
    return os.path.lexists(path) or any(os.path.isfile(path[: mark.start()]) for mark in re.finditer("[/#]", path))


def _shards_by_url(path: str) -> list[str]:
    from vlmkit.io.stream import check_remote

    check_remote([path])
    return expand_braces(path)


def _missing(path: str) -> str:
    if "#" in path and any(os.path.isfile(path[: mark.start()]) for mark in re.finditer("#", path)):
        return why_not_regular(path)
    other = re.match(r"[a-z][a-z0-9+.-]+://", path, re.IGNORECASE)
    return (
        "only http and https URLs are fetched, and of others shards (.tar)"
        if other
        else no_such_file(path, "no such file or folder")
    )


def _lines(stream: IO[bytes], how: Reading) -> Iterator[bytes]:
    """The non-empty lines of `stream`, read as they come."""
    if not how.nul:
        for number, raw in enumerate(stream):
            if line := (raw if number else raw.removeprefix(BOM)).rstrip(b"\r\n"):
                yield line
        return
    rest = b""
    while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
        *complete, rest = (rest + chunk).split(b"\0")
        yield from filter(None, complete)
    if rest:
        yield rest


def _text(line: bytes) -> Item | Failed:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return Failed(line.decode(errors="backslashreplace"), None, "the text is not UTF-8")
    return Item({"id": text, "text": text})


def _form(head: bytes) -> Literal["blobs", "array", "jsonl"] | None:
    """The format of a stream that starts with `head`; None for neither records nor safetensors."""
    if is_blob(head):
        return "blobs"
    first = head.removeprefix(BOM).lstrip()[:1]
    return {b"[": "array", b"{": "jsonl"}.get(first)  # type: ignore[return-value]


def _records(form: str, stream: IO[bytes], name: str, folder: str, how: Reading) -> Iterator[Item | Failed]:
    rows: Iterator[Block | Record | Failed] | Iterator[Record | Failed]
    if form == "blobs" and (together := how.together):
        rows = read_blocks(stream, name, lambda row: is_complete(row) and together(row))
    elif form == "blobs":
        rows = read_blobs(stream, name)
    elif form == "array" or (name.lower().endswith(".json") and not _is_jsonl(stream)):
        rows = read_json(stream.read(), name)
    else:
        rows = read_jsonl(stream, name)
    for row in rows:
        if isinstance(row, Failed):
            yield row
        elif isinstance(row, Block):
            yield Item({}, block=row)
        elif is_complete(row) and not (how.one_picture and _is_divided(row)):
            yield Item(row)
        else:
            yield from _items(row, folder, how)


def _table(head: bytes, stream: IO[bytes], name: str, folder: str, how: Reading) -> Iterator[Item | Failed]:
    for row in read_table(head, stream, name, how.columns):
        if isinstance(row, Failed):
            yield row
        else:
            yield from _items({column: cell for column, cell in row.items() if cell is not None}, folder, how)


def _items(row: Record, folder: str, how: Reading) -> Iterator[Item | Failed]:
    row = with_image(row)
    for one in singly(row) if how.one_picture else [row]:
        record = _absolute(one, folder)
        if how.one_picture and _is_divided(record):
            yield from _parts_of(record, how)
        else:
            yield Item(record)


def _is_divided(record: Record) -> bool:
    """Whether a record without a vector is about a document or film as a whole."""
    image = record.get("image")
    return isinstance(image, str) and "embedding" not in record and is_divided(image)


def _parts_of(record: Record, how: Reading) -> Iterator[Item | Failed]:
    """The pages or frames of what `record` is about, each with its other fields."""
    reader = reader_of(record["image"])
    assert reader is not None
    for item in container_items(record["image"], reader, how):
        if isinstance(item, Item):
            item.record = record | item.record
        yield item


def _is_jsonl(stream: IO[bytes]) -> bool:
    """Whether the first line is a complete JSON value: `.json` files hold one document or JSONL."""
    try:
        loads(stream.readline())
    except ValueError:
        return False
    finally:
        stream.seek(0)
    return True


def _absolute(record: Record, folder: str) -> Record:
    """`record` with absolute `image` and `images`, and an `id` if it can be made from its picture or text."""
    for name in FIELDS:
        if record.get(name):
            record[name] = locate(record[name], lambda path: _absolute_path(path, folder))
    if record.get("id") not in (None, ""):
        return record if isinstance(record["id"], str) else record | {"id": str(record["id"])}
    image = record.get("image")
    key = image if image and isinstance(image, str) else record.get("text")
    if isinstance(key, str) and is_data(key):
        key = f"data:{content_hash(key.encode())}"
    rest = {name: value for name, value in record.items() if name != "id"}
    return rest if key is None else {"id": key} | rest


def _absolute_path(image: str, folder: str) -> str:
    if is_absolute(image) or not image:
        return image
    return image if is_uri(image) else os.path.abspath(os.path.join(folder, image))


def _expand(path: str, how: Reading) -> Iterator[Item | Failed]:
    if path == os.devnull:  # the usual name of an empty input
        return
    name = path if is_uri(path) else os.path.abspath(path)
    if (remote := shard_reader(name)) is not None:
        yield from shard_items(name, remote, how)
    elif not os.path.lexists(name):  # a URL, a member of a container
        yield complete(picture_item(name, part_at(name)), how)
    elif os.path.isdir(name):
        for output in (outputs := outputs_of(name)):
            yield from _file(output, how)
        if outputs and not is_done(name):
            warn(f"{path}: not all shards are done (there is no {DONE}): those that are were read")
        if not outputs:
            yield from folder_items(name, how)
    elif (reader := reader_of(name)) is not None:
        yield from container_items(name, reader, how)
    elif (extra := missing_extra(name)) is not None:
        yield failed(name, error := MissingExtra(extra), error.remedy)
    elif not os.path.isfile(name):
        yield failed(name, why_not_regular(name))
    elif is_compressed_tar_name(name):
        yield failed(name, COMPRESSED_TAR)
    else:
        yield from _file(name, how)


def _file(name: str, how: Reading) -> Iterator[Item | Failed]:
    """A file named by the user: records by content, lines of text with `--text`, else a picture."""
    try:
        with open(name, "rb") as stream:
            head = read_head(name)
            form = _form(head)
            if form is not None and (how.records or form == "blobs" or RECORD_START.match(head.removeprefix(BOM))):
                yield from _records(form, stream, name, how.images or os.path.dirname(name), how)
            elif how.columns or (is_table_name(name) and not how.texts):
                yield from _table(head, stream, name, how.images or os.path.dirname(name), how)
            elif how.texts:
                yield from map(_text, _lines(stream, how))
            elif head or is_picture_name(name):  # an empty list of records is a list
                yield picture_item(name)
    except OSError as error:
        yield failed(name, error.strerror or str(error))
