"""Lists of URLs: records, tables and plain lines become rows, each with its id and the URL of its picture."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.io.inputs import Reading, records_of
from vlmkit.io.records import Failed, Record
from vlmkit.io.sources import is_url

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")  # of lists, which no data set or model has
COLUMNS = ("url", "image")


class Row(NamedTuple):
    """A record of the list, its id and the URL of its picture."""

    id: str
    url: str
    record: Record

    def failed(self, error: object) -> Failed:
        return Failed(self.id, self.url, str(error))

    def done(self, image: str, width: int, height: int, size: int) -> Record:
        """The record of the picture `image` of `size` bytes, with all fields of the list."""
        found = {"image": image, "bytes": size, "width": width, "height": height}
        return {"id": self.id, **self.record, **found, "url": self.url}


def read_list(path: str, column: str | None = None) -> Iterator[Row | Failed]:
    """The rows of a list of URLs; the URL is the field `column`, or by default `url`, or `image` where that is one.

    The case of a name matters only where two names differ in nothing else. Raises VlmkitError for a missing file and
    for a table without that column.
    """
    columns = COLUMNS if column is None else (column,)
    records = records_of([path], Reading(columns=columns))
    # The first record is read at once: a table without the column is an error before anything starts.
    first = list(islice(records, 1))
    return (_row(record, columns) for record in chain(first, records))


def _row(record: Record | Failed, columns: tuple[str, ...]) -> Row | Failed:
    if isinstance(record, Failed):
        return record
    values = [value for name in columns if isinstance(value := _field(record, name), str) and value.strip()]
    if url := next((value.strip() for value in values if is_url(value.strip())), None):
        fields = {name: url if name == "url" else value for name, value in record.items() if name != "id"}
        own = record.get("url", url)  # of a page, where another column names the pictures
        if str(own).strip() != url:
            fields["list_url"] = own
        return Row(str(record.get("id", url)), url, fields)
    return Failed.of(record, f"no url: {values[0]!r} does not begin with http" if values else "no url")


def _field(record: Record, name: str) -> object:
    if name in record:
        return record[name]
    return next((value for other, value in record.items() if other.lower() == name.lower()), None)


def read_failed_ids(path: str) -> set[str]:
    """The ids that an `--errors` file names. Raises VlmkitError."""
    rows = list(records_of([path]))
    if any(isinstance(row, Failed) or "id" not in row for row in rows):
        raise VlmkitError(f"{path} is not a list of failed records", "name a file that --errors wrote")
    return {row["id"] for row in rows if not isinstance(row, Failed)}
