"""The examples of every command, read from examples.toml when they are shown."""

from functools import cache
from pathlib import Path
from typing import NamedTuple


class Example(NamedTuple):
    """One shell line, what it is for, and what it prints."""

    what: str
    line: str
    prints: str = ""


@cache
def examples() -> dict[str, list[Example]]:
    """The examples by command, in their order."""
    import tomllib

    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {command: [Example(**each) for each in rows] for command, rows in table.items()}
