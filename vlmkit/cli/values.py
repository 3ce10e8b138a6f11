"""What shell completions ask for while one types: fields of records, their values, and models of config.toml.

It has to be quick.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

SAMPLE = 100  # records that are looked at for their fields
VALUES_SAMPLE = 5_000  # for their values
LONGEST = 60  # characters of a value that one would type
HEAD = 1 << 18  # bytes of a file


def write_values(arguments: list[str]) -> None:
    """Print the values that the first argument names, one a line; the rest are the words of the command line."""
    kind, *words = arguments or [""]
    with suppress(OSError, ValueError):
        found = {"fields": _fields, "values": _values, "models": lambda _: _models()}.get(kind, lambda _: [])(words)
        sys.stdout.write("".join(f"{name}\n" for name in dict.fromkeys(found)))


def _home(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / usual) / "vlmkit"


def _models() -> list[str]:
    """The names that config.toml gives to models."""
    import tomllib

    file = os.environ.get("VLMKIT_CONFIG") or _home("XDG_CONFIG_HOME", ".config") / "config.toml"
    return list(tomllib.loads(Path(file).read_text(encoding="utf-8")).get("models") or {})


def _fields(words: list[str]) -> list[str]:
    """The fields of the files among `words`, else of the index that they name."""
    files = [word for word in words[1:] if Path(word).is_file()]
    if words[:1] != ["search"]:
        return sorted(name for file in files for name in _fields_of_file(Path(file)))
    return sorted(_names(_indexed(words, SAMPLE)))


def _values(words: list[str]) -> list[str]:
    """The values that the field, the first of `words`, has in the index that the others name."""
    field, *line = words
    path = field.rstrip("!<>").split(".")
    found = {str(value) for record in _indexed(line, VALUES_SAMPLE) for value in _at(record, path)}
    return sorted(value for value in found if len(value) <= LONGEST and value.isprintable())


def _at(value: object, path: list[str]) -> Iterator[object]:
    """The numbers and texts at the `path` of field names, in each element of a list."""
    if isinstance(value, list):
        for each in value:
            yield from _at(each, path)
    elif isinstance(value, dict) and path:
        yield from _at(value.get(path[0]), path[1:])
    elif not path and isinstance(value, str | int | float):
        yield value


def _indexed(words: list[str], most: int) -> list[object]:
    """The first records of the index that the command line names."""
    named = (value for flag, value in pairwise(words) if flag in ("-i", "--index"))
    index = next(named, os.environ.get("VLMKIT_INDEX") or "default")
    folder = Path(index) if "/" in index or "." in index else _home("XDG_DATA_HOME", ".local/share") / index
    if not (folder / "index.sqlite").is_file():
        return []
    import sqlite3

    try:
        with closing(sqlite3.connect(folder / "index.sqlite", timeout=0.05)) as db:
            rows = db.execute("SELECT record FROM records LIMIT ?", [most])
            return [json.loads(record) for (record,) in rows]
    except sqlite3.Error:  # it is no index, or busy
        return []


def _fields_of_file(file: Path) -> Iterable[str]:
    with file.open("rb") as opened:
        lines = opened.read(HEAD).decode(errors="replace").splitlines()[:SAMPLE]
    if file.suffix in (".csv", ".tsv"):
        return lines[0].split("," if file.suffix == ".csv" else "\t")
    return _names(_objects(lines))


def _objects(lines: list[str]) -> Iterator[object]:
    for line in lines:
        with suppress(ValueError):  # a line that was cut
            yield json.loads(line)


def _names(records: Iterable[object]) -> set[str]:
    """The fields of `records`, dotted where they are nested."""
    found = set()
    for record in records:
        for name, value in record.items() if isinstance(record, dict) else ():
            found.add(name)
            first = value[0] if isinstance(value, list) and value else value
            found |= {f"{name}.{inner}" for inner in first} if isinstance(first, dict) else set()
    return found
