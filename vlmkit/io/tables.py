"""Tables (CSV, TSV, xlsx, Parquet) and plain lines as records: the fields of a row are its columns."""

import codecs
import contextlib
import csv
import io
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain, zip_longest
from typing import IO, TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError, check_installed, first_line
from vlmkit.io.records import Failed, Record, dumps, to_float16
from vlmkit.io.sources import as_data, is_picture, is_url
from vlmkit.io.terminal import warn

if TYPE_CHECKING:
    import pyarrow

CELL_BYTES = 1 << 30  # a cell may contain a picture
SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet")
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # by suffix, else those of TSV
EMBEDDING = "embedding"
PARQUET = b"PAR1"
WORKBOOK = b"PK\3\4"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
PARQUET_ROWS = 64  # read at a time: each may hold a picture
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Cells = Iterator[tuple[int, Sequence[Any]] | Failed]  # each with the number of its line or row


def read_table(head: bytes, stream: IO[bytes], name: str, columns: Sequence[str] = ()) -> Iterator[Record | Failed]:
    """The rows of a table that starts with `head`, told by its content; a cell without a value is None.

    A row that cannot be read without losing something fails alone. With `columns` the table has to have one of them,
    ignoring case, or is plain lines: where the first one is a URL each is a record {columns[0]: line}, without empty
    ones and those that begin with #. Raises VlmkitError.
    """
    if head.startswith(PARQUET):
        return _parquet(stream, name, columns)
    if head.startswith(WORKBOOK):
        rows = _workbook_rows(stream, name)
        return _records(_first(rows, name), rows, name, columns)
    if head.startswith(COMPRESSED) or (b"\0" in head and not head.startswith(UTF16)):
        remedy = "unpack it first, or name another file"
        raise VlmkitError(f"{name} is neither records nor a table nor lines of text", remedy)
    lines: Iterator[str] = io.TextIOWrapper(stream, encoding_of(head), errors="surrogateescape", newline="")
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    skipped = (found for found in numbered if not (columns and found[1].startswith("#")))
    number, line = next(skipped, (0, ""))
    if not line:
        return iter(())
    suffix = os.path.splitext(name)[1].lower()
    header, delimiter = _header(line, DELIMITERS.get(suffix, DELIMITERS[".tsv"]), columns)
    if columns and _missing(header, columns):
        if len(header) > 1 and any(map(is_url, header)):
            remedy = f"add a first line that names the columns: {columns[0]}"
            raise VlmkitError(f"{name} begins with a row of values", remedy)
        if is_url(line.strip()) or suffix not in DELIMITERS:
            return _plain(chain([line], lines), columns[0])
    rows = _text_rows(chain([line], lines), delimiter, name, number - 1)
    return _records(_first(rows, name), rows, name, columns)


def is_table_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def encoding_of(head: bytes) -> str:
    """The encoding of a text that starts with `head`, by its byte order mark; else UTF-8."""
    return "utf-16" if head.startswith(UTF16) else "utf-8-sig"


def check_columns(name: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise VlmkitError where a table with the columns `found` has none of `wanted`, or two of one name."""
    if wanted and _missing(found, wanted):
        remedy = "name the one of the URLs with --url-column"
        raise VlmkitError(f"{name} has no column {wanted[0]}; it has {', '.join(found)}", remedy)
    if twice := next((column for column in found if found.count(column) > 1), None):
        raise VlmkitError(f"{name} has two columns {twice}", "give each column a name of its own")


def _missing(found: Sequence[str], wanted: Sequence[str]) -> bool:
    return {column.lower() for column in wanted}.isdisjoint(column.lower() for column in found)


def _header(line: str, delimiters: str, columns: Sequence[str]) -> tuple[list[str], str]:
    """The cells of the first line, and the delimiter: the one that shows one of `columns`, else the first there is."""
    split = {mark: [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])] for mark in delimiters}
    showing = (mark for mark in delimiters if not _missing(split[mark], columns))
    usual = delimiters[0] if columns else next((mark for mark in delimiters if mark in line), delimiters[0])
    delimiter = next(showing, usual)
    return split[delimiter], delimiter


def _first(rows: Cells, name: str) -> Sequence[Any]:
    """The first row with a value."""
    for row in rows:
        if isinstance(row, Failed):
            raise VlmkitError(f"{name}: {row.error}", row.remedy)
        if any(map(_has_value, row[1])):
            return row[1]
    return []


def _records(first: Sequence[Any], rows: Cells, name: str, columns: Sequence[str]) -> Iterator[Record | Failed]:
    """The further rows under the names in the `first` one; a column without a name has that of its place."""
    header = [str(cell).strip() if _has_value(cell) else f"column {place}" for place, cell in enumerate(first, 1)]
    check_columns(name, header, columns)
    return (_record(row, header, name) for row in rows if isinstance(row, Failed) or any(map(_has_value, row[1])))


def _record(row: tuple[int, Sequence[Any]] | Failed, header: list[str], name: str) -> Record | Failed:
    if isinstance(row, Failed):
        return row
    number, cells = row
    if any(map(_has_value, cells[len(header) :])):
        what = f"{len(cells)} cells for {len(header)} columns"
        remedy = "write quotes around cells with tabs, commas or line breaks"
        return Failed(f"{name}:{number}", None, what, remedy)
    named = zip_longest(header, cells[: len(header)])
    return {column: cell if _has_value(cell) else None for column, cell in named}


def _has_value(cell: Any) -> bool:
    return bool(cell.strip()) if isinstance(cell, str) else cell is not None


def _plain(lines: Iterator[str], column: str) -> Iterator[Record | Failed]:
    for line in lines:
        if (text := line.strip()) and not text.startswith("#"):
            yield {column: text} if _is_text(text) else Failed(ascii(text), None, "the line is not UTF-8")


def _text_rows(lines: Iterator[str], delimiter: str, name: str, skipped: int) -> Cells:
    csv.field_size_limit(CELL_BYTES)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            what, remedy = f"the row cannot be read ({error})", 'double the quotes inside quoted cells: "a ""b"" c"'
            yield Failed(f"{name}:{reader.line_num + skipped}", None, what, remedy)
            continue
        except UnicodeError as error:
            yield Failed(f"{name}:{reader.line_num + skipped + 1}", None, str(error), "save it as UTF-8")
            return
        if cells is None:
            return
        number = reader.line_num + skipped
        is_text = all(map(_is_text, cells))
        yield (number, cells) if is_text else Failed(f"{name}:{number}", None, "not UTF-8", "save it as UTF-8")


def _is_text(cell: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in cell)


def _workbook_rows(stream: IO[bytes], name: str) -> Cells:
    """The rows of the first sheet; a formula without a computed value is its text."""
    from zipfile import BadZipFile

    check_installed("a table in xlsx", "vlmkit[eval]", "openpyxl")
    from openpyxl import load_workbook

    data = io.BytesIO(stream.read())
    try:
        books = [load_workbook(data, read_only=True, data_only=computed) for computed in (True, False)]
        if len(books[0].worksheets) > 1:
            warn(f"{name}: only the first of {len(books[0].worksheets)} sheets is read: save others as own files")
        sheets = [book.worksheets[0] for book in books]
        for sheet in sheets:
            sheet.reset_dimensions()  # some programs write less than there is
        both = zip(*(sheet.iter_rows(values_only=True) for sheet in sheets), strict=True)
        for number, (values, formulas) in enumerate(both, 1):
            yield number, [_sheet_value(*cell) for cell in zip(values, formulas, strict=True)]
    except (BadZipFile, zlib.error, EOFError, KeyError, IndexError, ValueError, SyntaxError):
        raise VlmkitError(f"{name}: not an xlsx file", "unpack it first, or save it again as xlsx or tsv") from None


def _sheet_value(value: Any, formula: Any) -> Any:
    """The value of a cell; of a formula that has none, or gave an error, its text: "=5" and "-x" are answers, too."""
    text = getattr(formula, "text", formula)  # of a formula for several cells
    failed = value is None or (isinstance(value, str) and value.startswith("#"))
    if failed and isinstance(text, str) and text.startswith("="):
        return text
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, timedelta) else value


def _parquet(stream: IO[bytes], name: str, columns: Sequence[str]) -> Iterator[Record | Failed]:
    check_installed("a Parquet file", "vlmkit[parquet]", "pyarrow")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(stream if stream.seekable() else _spooled(stream))
    except (ArrowException, OSError) as error:
        raise VlmkitError(
            f"{name} is a Parquet file that cannot be read ({first_line(error)})", "get it again"
        ) from None
    schema = table.schema_arrow
    check_columns(name, schema.names, columns)

    def rows() -> Iterator[Record | Failed]:
        lost: set[str] = set()
        try:
            for batch in table.iter_batches(PARQUET_ROWS):
                for row in _rows(batch):
                    for column in _unheld(row) - lost:
                        warn(f"{name}: {column}: bytes that are no picture, which a record cannot hold: left out")
                        lost.add(column)
                    yield _parquet_record(row, name)
        except (ArrowException, OSError) as error:
            yield Failed(name, None, f"the Parquet file is damaged ({first_line(error)})")

    return rows()


def _rows(batch: "pyarrow.RecordBatch") -> Iterator[Record]:
    """The rows, with vectors as float16."""
    from pyarrow import types

    if EMBEDDING not in batch.schema.names or not types.is_list(batch.schema.field(EMBEDDING).type):
        yield from batch.to_pylist()
        return
    for row, vector in zip(batch.drop_columns([EMBEDDING]).to_pylist(), batch.column(EMBEDDING), strict=True):
        numbers = vector.as_py()
        with contextlib.suppress(ValueError):  # what is no vector is told by who needs one
            numbers = to_float16(numbers)
        yield row | {EMBEDDING: numbers}


def _spooled(stream: IO[bytes]) -> IO[bytes]:
    """A pipe as a file that can be read from its end, which is where Parquet begins."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (as long as it is read)
    shutil.copyfileobj(stream, spool)
    return spool


def _unheld(row: Record) -> set[str]:
    """The columns whose bytes no record can hold."""
    return {column for column, value in row.items() if isinstance(value, bytes) and not is_picture(value)}


def _parquet_record(row: Record, name: str) -> Record | Failed:
    """`row` as JSON holds it; NaN, as some programs write it, is no value."""
    record = {column: _plain_value(value) for column, value in row.items()}
    try:
        dumps(record)
    except ValueError as error:
        return Failed(name, None, str(error))
    return {column: value for column, value in record.items() if column not in _unheld(row)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return as_data(value) if is_picture(value) else None
    if isinstance(value, list):
        return [_plain_value(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain_value(one) for key, one in value.items() if one is not None}
    return str(value) if isinstance(value, date | time | timedelta | Decimal) else value
