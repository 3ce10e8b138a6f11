"""The rows of DATA in files, read one by one: memory does not grow with them, and processes share them.

A store is a folder: `rows.jsonl`, `columns.bin` with what an epoch needs to know of each row, `dropped.jsonl` with what
was reported, and `report.json` with counts. It holds no code, whoever wrote it.
"""

import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
from xxhash import xxh3_64_intdigest

from vlmkit.io.remote import RemotePart
from vlmkit.io.sources import Bytes, Source, open_source
from vlmkit.train.data.samples import Captioned, Dialogue, Preference, Turn

ROWS, COLUMNS, DROPPED, REPORT = "rows.jsonl", "columns.bin", "dropped.jsonl", "report.json"
# Where the row stands in ROWS, which DATA it is of, hashes of its pictures (0: none) and, for draws, of its id.
COLUMN = np.dtype(
    [("at", "<u8"), ("size", "<u4"), ("source", "<u2"), ("pictures", "<u8"), ("id", "<u4"), ("odds", "<u4")]
)
PACKED = struct.Struct("<QIHQII")
KINDS: dict[str, type[Any]] = {"dialogue": Dialogue, "preference": Preference, "captioned": Captioned}
NAMES = {kind: name for name, kind in KINDS.items()}
OPEN = 256  # pictures of containers other than tar that are kept open

Row = TypeVar("Row", bound=Dialogue | Preference | Captioned)


class Encoded(NamedTuple):
    """A line of ROWS, and its `columns_of`."""

    line: bytes
    columns: tuple[int, int, int]


def encoded(row: Any, names: Sequence[str]) -> Encoded:
    """The row as a store has it; `names` are the paths of the row's pictures."""
    both = zip(row.pictures, names, strict=True)
    pictures = [list(p) if isinstance(p, Source | RemotePart) else name for p, name in both]
    id, *values = [getattr(row, field.name) for field in fields(row) if field.name not in ("picture", "pictures")]
    line = json.dumps([NAMES[type(row)], pictures, id, *values], default=_turn).encode() + b"\n"
    return Encoded(line, columns_of(json.dumps(pictures).encode() if pictures else b"", id))


def decoded(line: bytes) -> Any:
    """The row of a line."""
    name, stored, id, *values = json.loads(line)
    pictures = tuple(_placed(one) if isinstance(one, list) else _opened(one) for one in stored)
    kind = KINDS[name]
    if kind is Captioned:
        return Captioned(id, pictures[0], tuple(values[0]))
    if kind is Dialogue:
        values[0] = tuple(Turn(*turn) for turn in values[0])
    return kind(id, pictures, *values)


def _placed(fields: list[Any]) -> Bytes:
    return Source(*fields) if len(fields) == len(Source._fields) else RemotePart(*fields)


def columns_of(pictures: bytes, id: str) -> tuple[int, int, int]:
    """The columns behind `source` of a row with `pictures`, empty where there are none."""
    return (xxh3_64_intdigest(pictures) or 1) if pictures else 0, share32(id), share32(f"mixture {id}")


def share32(key: str) -> int:
    """32 bits of the SHA-256 of `key`."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:4], "big")


def _turn(turn: Turn) -> list[str]:
    return [turn.user, turn.reply]


@lru_cache(OPEN)
def _opened(name: str) -> Bytes:
    return open_source(name)


class Stored(Sequence[Row], Generic[Row]):
    """Rows of a store, read when they are asked for; `columns` (R,) COLUMN."""

    columns: np.ndarray

    def only(self, numbers: np.ndarray) -> Self:
        """Those with these numbers, in their order."""
        raise NotImplementedError

    def read(self, number: int) -> Row:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self.read(i) for i in range(*number.indices(len(self)))]
        return self.read(number)

    def __iter__(self) -> Iterator[Row]:
        return (self.read(i) for i in range(len(self)))


class RowFile(Stored[Row]):
    """The rows of a store, or some of them, each read from the file when it is asked for.

    The file stays open, so that the folder may be replaced or removed meanwhile.
    """

    def __init__(self, file: int, columns: np.ndarray, folder: Path) -> None:
        self.file, self.columns, self.folder = file, columns, folder

    @classmethod
    def open(cls, folder: Path) -> Self:
        return cls(os.open(folder / ROWS, os.O_RDONLY), np.memmap(folder / COLUMNS, COLUMN, "r"), folder)

    def only(self, numbers: np.ndarray) -> Self:
        return type(self)(self.file, self.columns[numbers], self.folder)

    def read(self, number: int) -> Row:
        column = self.columns[number]
        return decoded(os.pread(self.file, int(column["size"]), int(column["at"])))


class RowWriter:
    """Writes the rows of a store into `folder`, but those that repeat an earlier one."""

    def __init__(self, folder: Path) -> None:
        self.rows, self.columns = (open(folder / name, "wb") for name in (ROWS, COLUMNS))  # noqa: SIM115
        self.at = 0
        self.seen = HashSet()

    def add(self, source: int, samples: list[Encoded]) -> bool:
        """Write the samples of a row of the DATA `source`; False where they are there already."""
        if not self.seen.add(xxh3_64_intdigest(b"".join(line for line, _ in samples))):
            return False
        for line, columns in samples:
            self.rows.write(line)
            self.columns.write(PACKED.pack(self.at, len(line), source, *columns))
            self.at += len(line)
        return True

    def close(self) -> None:
        self.rows.close()
        self.columns.close()


class HashSet:
    """A set of 64-bit hashes in 16 to 32 bytes each; a set of Python's takes 80."""

    def __init__(self) -> None:
        self.table, self.count = array("Q", bytes(8 * 1024)), 0

    def add(self, hash: int) -> bool:
        """Whether `hash` was not there."""
        if 2 * self.count >= len(self.table):
            old, self.table, self.count = self.table, array("Q", bytes(16 * len(self.table))), 0
            for known in filter(None, old):
                self.add(known)
        hash = hash or 1
        mask = len(self.table) - 1
        place = hash & mask
        while found := self.table[place]:
            if found == hash:
                return False
            place = (place + 1) & mask
        self.table[place] = hash
        self.count += 1
        return True
