"""Tables (CSV, TSV, Parquet) and plain lines as records: the fields of a row are the columns where it has a value."""

import codecs
import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import chain
from typing import IO, Any

from vlmkit.errors import VlmkitError, check_installed, first_line
from vlmkit.io.records import Failed, Record, dumps
from vlmkit.io.sources import is_url
from vlmkit.io.terminal import warn

CELL_BYTES = 1 << 30
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # by suffix; the first one is meant where none shows the column
PARQUET = b"PAR1"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\3\4")


def read_table(head: bytes, stream: IO[bytes], name: str, columns: Sequence[str]) -> Iterator[Record | Failed]:
    """The rows of a table that starts with `head` and has one of `columns`, told by its content.

    What begins with a URL has no columns: each line is a record {columns[0]: line}; empty lines and those that begin
    with # are skipped. Raises VlmkitError where the table has none of `columns`, ignoring case.
    """
    if head.startswith(PARQUET):
        return _parquet(stream, name, columns)
    utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if head.startswith(COMPRESSED) or (b"\0" in head and not utf16):
        remedy = "unpack it first, or name another file"
        raise VlmkitError(f"{name} is neither records nor a table nor lines of text", remedy)
    encoding = "utf-16" if utf16 else "utf-8-sig"
    lines: Iterator[str] = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    if not first:
        return iter(())
    suffix = os.path.splitext(name)[1].lower()
    header, delimiter = _header(first, DELIMITERS.get(suffix, "\t,;|"), columns)
    has_columns = not _missing(header, columns)
    if not has_columns and len(header) > 1 and any(is_url(cell) for cell in header):
        raise VlmkitError(
            f"{name} begins with a row of values", f"add a first line that names the columns: {columns[0]}"
        )
    if not has_columns and (is_url(first.strip()) or suffix not in DELIMITERS):
        return _plain(chain([first], lines), name, columns[0])
    check_columns(name, header, columns)
    return _rows(csv.reader(lines, delimiter=delimiter, strict=True), header, name)


def check_columns(name: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise VlmkitError where a table with the columns `found` has none of `wanted`, or one of them twice."""
    if _missing(found, wanted):
        remedy = "name the one of the URLs with --url-column"
        raise VlmkitError(f"{name} has no column {wanted[0]}; it has {', '.join(found)}", remedy)
    if twice := next((column for column in found if found.count(column) > 1), None):
        raise VlmkitError(f"{name} has two columns {twice or 'without a name'}", "give each column a name of its own")


def _missing(found: Sequence[str], wanted: Sequence[str]) -> bool:
    return {column.lower() for column in wanted}.isdisjoint(column.lower() for column in found)


def _header(line: str, delimiters: str, columns: Sequence[str]) -> tuple[list[str], str]:
    """The cells of the first line, and the delimiter: the one that shows one of `columns`, else the usual one."""
    for delimiter in (*delimiters, delimiters[0]):
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
        if not _missing(cells, columns):
            break
    return cells, delimiter


def _plain(lines: Iterator[str], name: str, column: str) -> Iterator[Record | Failed]:
    for line in lines:
        if (text := line.strip()) and not text.startswith("#"):
            yield {column: text} if _is_text(text) else Failed(ascii(text), None, "the line is not UTF-8")


def _rows(reader: Any, header: list[str], name: str) -> Iterator[Record | Failed]:
    csv.field_size_limit(CELL_BYTES)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            place = f"{name}:{reader.line_num + 1}"
            yield Failed(place, None, f"the row cannot be read ({error})", "check its quotes")
            continue
        if cells is None:
            return
        row = {column: cell for column, cell in zip(header, cells, strict=False) if cell.strip()}
        if any(map(str.strip, cells[len(header) :])):
            yield Failed(
                f"{name}:{reader.line_num + 1}", None, "the row has more cells than the first line", "quote them"
            )
        elif not all(map(_is_text, row.values())):
            yield Failed(f"{name}:{reader.line_num + 1}", None, "the row is not UTF-8", "save the table as UTF-8")
        elif row:
            yield row


def _is_text(cell: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in cell)


def _parquet(stream: IO[bytes], name: str, columns: Sequence[str]) -> Iterator[Record | Failed]:
    check_installed("a Parquet file", "vlmkit[parquet]", "pyarrow")
    from pyarrow import ArrowException, types
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(stream if stream.seekable() else io.BytesIO(stream.read()))
    except (ArrowException, OSError) as error:
        raise VlmkitError(
            f"{name} is a Parquet file that cannot be read ({first_line(error)})", "get it again"
        ) from None
    schema = table.schema_arrow
    check_columns(name, schema.names, columns)
    binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    kept = [field.name for field in schema if not any(test(field.type) for test in binary)]

    def rows() -> Iterator[Record | Failed]:
        try:
            for batch in table.iter_batches(1024, columns=kept):
                for row in batch.to_pylist():
                    yield _without_gaps(row, name)
        except (ArrowException, OSError) as error:
            yield Failed(name, None, f"the Parquet file is damaged ({first_line(error)})")

    if left_out := [column for column in schema.names if column not in kept]:
        warn(f"{name}: {', '.join(left_out)}: bytes, which a record cannot hold: left out")
    return rows()


def _without_gaps(row: Record, name: str) -> Record | Failed:
    """`row` without the columns that have no value: empty, and NaN, as some programs write it."""
    found = {column: _plain_value(value) for column, value in row.items()}
    record = {column: value for column, value in found.items() if value is not None}
    try:
        dumps(record)
    except ValueError as error:
        return Failed(name, None, str(error))
    return record


def _plain_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, date | time | timedelta | Decimal) else value
