"""Tables of predictions, such as VLMEvalKit's: TSV, CSV and xlsx, told by their content."""

import ast
import codecs
import contextlib
import csv
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from itertools import zip_longest
from typing import IO, Any

from vlmkit.errors import VlmkitError, check_installed
from vlmkit.io.records import Record, is_blob
from vlmkit.io.terminal import read_head, warn

CELL_BYTES = 1 << 28  # a cell may contain a picture
PICTURE_COLUMN = re.compile(r"(image|img|picture)s?(_?\d+)?", re.IGNORECASE)
PICTURE_CELL = 1000  # characters that no name or URL of a picture has
BASE64 = re.compile(r"[A-Za-z0-9+/=\s\[\]'\",]+")  # one picture, or a list
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NAMES = (".tsv", ".csv", ".xlsx")
DELIMITERS = "\t,;"  # the first that the header has


def is_table(path: str) -> bool:
    """Whether the file is a table: a workbook, or text whose first line has columns and is no JSON."""
    head = read_head(path)
    if _is_workbook(head):
        return True
    line = head if head.startswith(UTF16) else head.splitlines()[0] if head else b""
    if not line.strip() or is_blob(head) or line.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        return False
    if path.lower().endswith(NAMES):
        return True
    try:
        text = line.decode(_encoding(line), "strict" if line is not head else "ignore")
    except UnicodeDecodeError:
        return False
    return _delimiter(text) is not None


def read_table(path: str, name: str) -> Iterator[Record]:
    """The rows by the names of their columns, cells as they stand, without pictures; `name` is for errors.

    An empty cell is "". Raises VlmkitError for a file that cannot be read without losing something.
    """
    rows = _workbook_rows(path, name) if _is_workbook(read_head(path)) else _text_rows(path, name)
    columns: list[str] = []
    for number, cells in rows:
        if not any(cell not in (None, "") for cell in cells):
            continue
        if not columns:
            columns = _columns(cells, name)
            continue
        if any(cell not in (None, "") for cell in cells[len(columns) :]):
            what = f"{name}:{number}: {len(cells)} cells for {len(columns)} columns"
            raise VlmkitError(what, "write quotes around cells with tabs, commas or line breaks")
        named = zip_longest(columns, cells[: len(columns)])
        yield {column: _value(cell) for column, cell in named if column and not _is_picture(column, cell)}


def _is_workbook(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


def _encoding(head: bytes) -> str:
    return "utf-16" if head.startswith(UTF16) else "utf-8-sig"


def _delimiter(line: str) -> str | None:
    return next((mark for mark in DELIMITERS if mark in line), None)


def _columns(cells: Sequence[Any], name: str) -> list[str]:
    columns = ["" if cell is None else str(cell).strip() for cell in cells]
    if twice := {column for column in columns if column and columns.count(column) > 1}:
        raise VlmkitError(f"{name}: several columns are called {min(twice)}", "rename all but one")
    return columns


def _text_rows(path: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of a TSV or CSV."""
    csv.field_size_limit(CELL_BYTES)
    try:
        with open(path, encoding=_encoding(read_head(path)), newline="") as file:
            mark = _delimiter(_first_line(file)) or "\t"
            reader = csv.reader(file, delimiter=mark, strict=True)
            for cells in reader:
                yield reader.line_num, cells
    except UnicodeError as error:
        raise VlmkitError(f"{name}: {error}", "save it as UTF-8") from None
    except csv.Error as error:
        what = f"{name}:{reader.line_num}: {error}"
        raise VlmkitError(what, 'double the quotes inside quoted cells: "a ""b"" c"') from None


def _first_line(file: IO[str]) -> str:
    line = file.readline()
    file.seek(0)
    return line


def _workbook_rows(path: str, name: str) -> Iterator[tuple[int, list[Any]]]:
    """(row, cells) of the first sheet of a workbook; a formula without a computed value is its text."""
    from zipfile import BadZipFile

    check_installed("a table in xlsx", "vlmkit[eval]", "openpyxl")
    from openpyxl import load_workbook

    try:
        with open(path, "rb") as file, open(path, "rb") as again:
            computed = load_workbook(file, read_only=True, data_only=True)
            written = load_workbook(again, read_only=True)
            if len(computed.worksheets) > 1:
                warn(f"{name}: only the first of {len(computed.worksheets)} sheets is read: save others as own files")
            sheets = [book.worksheets[0] for book in (computed, written)]
            for sheet in sheets:
                sheet.reset_dimensions()  # some programs write less than there is
            both = zip(*(sheet.iter_rows(values_only=True) for sheet in sheets), strict=True)
            for number, (values, formulas) in enumerate(both, 1):
                yield number, [_computed(*cell) for cell in zip(values, formulas, strict=True)]
    except (BadZipFile, zlib.error, EOFError, KeyError, IndexError, ValueError, SyntaxError):
        raise VlmkitError(f"{name}: not an xlsx file", "save it again as xlsx or tsv") from None


def _computed(value: Any, formula: Any) -> Any:
    """The value of a cell; of a formula that has none, or gave an error, its text: "=5" and "-x" are answers, too."""
    text = getattr(formula, "text", formula)  # of a formula for several cells
    is_formula = isinstance(text, str) and text.startswith("=")
    failed = value is None or (isinstance(value, str) and value.startswith("#"))
    return text if is_formula and failed else value


def _is_picture(column: str, value: Any) -> bool:
    """Whether a cell contains a picture in base64: nothing to score."""
    long = isinstance(value, str) and len(value) > PICTURE_CELL and PICTURE_COLUMN.fullmatch(column)
    return bool(long) and BASE64.fullmatch(value[:PICTURE_CELL]) is not None


def _value(cell: Any) -> Any:
    """A cell as JSON holds it; a list of texts, as VLMEvalKit writes several references, is a list."""
    if cell is None:
        return ""
    if isinstance(cell, datetime):
        return cell.date().isoformat() if cell.time() == time() else cell.isoformat()
    if isinstance(cell, date | time):
        return cell.isoformat()
    if isinstance(cell, timedelta):
        return str(cell)
    return parsed_list(cell)


def parsed_list(cell: Any) -> Any:
    """A text that is a list of texts or objects as that list, one of other values as JSON writes it; else `cell`."""
    found = literal_list(cell)
    if not found:
        return cell
    if all(isinstance(item, str | dict) for item in found):
        return found
    return json.dumps(found, ensure_ascii=False, default=str)


def literal_list(value: Any) -> list[Any] | None:
    """A list, also one that a text writes as Python or JSON do; None for anything else."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        for parse in (ast.literal_eval, json.loads):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = parse(value)
                break
    return value if isinstance(value, list) else None
