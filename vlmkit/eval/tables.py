"""Tables of predictions, such as VLMEvalKit's: which files are some, and what their cells say."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.io.blobs import is_blob
from vlmkit.io.records import Failed, Record
from vlmkit.io.tables import PARQUET, UTF16, WORKBOOK, encoding_of, read_table
from vlmkit.io.terminal import read_head
from vlmkit.io.values import literal_list

PICTURE_COLUMN = re.compile(r"(image|img|picture)s?(_?\d+)?", re.IGNORECASE)
PICTURE_CELL = 1000  # characters that no name or URL of a picture has
BASE64 = re.compile(r"[A-Za-z0-9+/=\s\[\]'\",]+")  # one picture, or a list
NAMES = (".tsv", ".csv", ".xlsx")
DELIMITERS = "\t,;"


def is_table(path: str) -> bool:
    """Whether the file is a table: a workbook, Parquet, or text whose first line has columns and is no JSON."""
    head = read_head(path)
    if head.startswith((WORKBOOK, PARQUET)):
        return True
    line = head if head.startswith(UTF16) else head.splitlines()[0] if head else b""
    if not line.strip() or is_blob(head) or line.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        return False
    if path.lower().endswith(NAMES):
        return True
    try:
        text = line.decode(encoding_of(line), "strict" if line is not head else "ignore")
    except UnicodeDecodeError:
        return False
    return any(mark in text for mark in DELIMITERS)


def read_predictions(path: str, name: str) -> Iterator[Record]:
    """The rows by the names of their columns, without pictures; an empty cell is "". `name` is for errors.

    Raises VlmkitError for a file that cannot be read without losing something.
    """
    with open(path, "rb") as file:
        for row in read_table(read_head(path), file, name):
            if isinstance(row, Failed):
                raise VlmkitError(f"{row.id}: {row.error}", row.remedy)
            yield {column: parsed_list(cell) for column, cell in row.items() if not _is_picture(column, cell)}


def _is_picture(column: str, value: Any) -> bool:
    """Whether a cell contains a picture in base64: nothing to score."""
    long = isinstance(value, str) and len(value) > PICTURE_CELL and PICTURE_COLUMN.fullmatch(column)
    return bool(long) and BASE64.fullmatch(value[:PICTURE_CELL]) is not None


def parsed_list(cell: Any) -> Any:
    """A text that is a list of texts or objects, as VLMEvalKit writes several references, as that list.

    One of other values is text as JSON writes it; "" stands for no value.
    """
    found = literal_list(cell)
    if not found:
        return "" if cell is None else cell
    if all(isinstance(item, str | dict) for item in found):
        return found
    return json.dumps(found, ensure_ascii=False, default=str)
