"""records.jsonl of a folder: what was fetched comes to what the file holds, and nothing of it goes."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import IO

from vlmkit.errors import VlmkitError
from vlmkit.io.files import lock
from vlmkit.io.records import Record, dumps, loads
from vlmkit.io.terminal import Output

FACTS = ("image", "bytes", "width", "height")  # of the picture, not of the list


def digest(data: bytes) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def row_key(record: Record) -> int:
    """A digest of what a list of URLs says of a picture: its id, its URL and its other fields, in any order."""
    return digest(dumps({"row": sorted((name, value) for name, value in record.items() if name not in FACTS)}))


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep other downloads out of it. Raises VlmkitError where one is under way."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, wait=False) as is_free:
        if not is_free:
            raise VlmkitError(f"another download adds to {folder}", "wait until it has ended")
        yield


def add_records(path: Path, records: Iterable[Record]) -> None:
    """Add `records` to the JSON Lines file at `path`; the file is replaced as a whole, or left if it has all of them.

    A record takes the place of the one that the same row of a list of URLs made before, or of an equal one; a new one
    stands before the next of `records` that is in the file, else at the end. Other lines stay as they are. Where there
    is a file already, about 200 bytes of memory are needed for each of `records`.
    """
    if not path.exists():
        with Output(str(path)) as out:
            out.write_records(records)
        return
    with tempfile.TemporaryFile(dir=path.parent) as new:
        places: dict[int, int] = {}
        repeats: dict[int, int] = {}
        for number, record in enumerate(records):
            line = dumps(record)
            new.write(line)
            key = _key(line)
            if key in places:  # the n-th of equal rows has the key plus n
                repeats[key] = repeats.get(key, 0) + 1
            places[key + repeats.get(key, 0)] = number
        with open(path, "rb") as old, open(path, "rb") as same:
            if all(line == other for line, other in zip_longest(_merged(old, new, places), same)):
                return
        with open(path, "rb") as old, Output(str(path)) as out:
            for line in _merged(old, new, places):
                out.write(line)


def _key(line: bytes) -> int:
    try:
        record = loads(line)
    except ValueError:
        return digest(line)
    return row_key(record) if isinstance(record, dict) and "url" in record else digest(line)


def _merged(old: Iterable[bytes], new: IO[bytes], places: dict[int, int]) -> Iterator[bytes]:
    """The lines of `old` and `new`, whose lines by key are `places`."""
    new.seek(0)
    given = 0  # lines of `new`
    seen: dict[int, int] = {}
    for line in old:
        key = _key(line if line.endswith(b"\n") else line + b"\n")
        count = seen.get(key, 0)
        place = places.get(key + count)
        if place is None:
            yield line if line.endswith(b"\n") else line + b"\n"
            continue
        seen[key] = count + 1
        while given <= place:
            yield new.readline()
            given += 1
    yield from iter(new.readline, b"")  # not `new` itself, which would be closed with this generator
