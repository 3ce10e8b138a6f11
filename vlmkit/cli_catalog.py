"""What `vlmkit download` says of what there is: --list, --search, --card."""

import sys
from typing import TYPE_CHECKING

from vlmkit.errors import Exit, one_line
from vlmkit.streams import Output, console, tell

if TYPE_CHECKING:
    from vlmkit.download.catalog import Query
    from vlmkit.records import Record


def found_by(query: "Query") -> "list[Record]":
    """Models of the Hub; where that cannot be asked, what the list has."""
    from vlmkit.download.catalog import local, on_hub
    from vlmkit.download.models import Unreachable

    try:
        return on_hub(query)
    except Unreachable as error:
        unknown = query.only_on_hub()
        tell(f"{error.what}: these are of --list" + (f", which knows no {', '.join(unknown)}" if unknown else ""))
        return local(query)


def print_card(name: str) -> Exit:
    """One record: of a data set what the list has, of a model what the Hub says, or the list if it cannot be asked."""
    from vlmkit.datasets import REGISTRY
    from vlmkit.download import catalog, models

    known = {str(entry["name"]): entry for entry in catalog.entries()}
    try:
        found = known[name] if name in REGISTRY else catalog.card(name, models.facts(models.repo_of(name)))
    except models.Unreachable as error:
        if name not in known:
            raise
        tell(f"{error.what}: this is of --list")
        found = known[name]
    with Output() as out:
        out.write_records([found])
    return Exit.OK


def show(found: "list[Record]", json: bool) -> Exit:
    """A table on a terminal, else records."""
    if json or sys.stdout is None or not sys.stdout.isatty():
        with Output() as out:
            out.write_records(found)
    elif found:
        _print_table(found)
    return Exit.OK if found else Exit.NOTHING_FOUND


def _print_table(found: "list[Record]") -> None:
    from rich.table import Table
    from rich.text import Text

    from vlmkit.download.run import amount

    table = Table(box=None, header_style="bold")
    for name in ("name", "kind", "size", "licence", "what"):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for entry in found:
        size = entry.get("bytes")
        cells = (entry["name"], entry["kind"], "?" if size is None else amount(size), entry["licence"] or "?")
        table.add_row(*(Text(one_line(str(cell))) for cell in (*cells, entry.get("what") or entry.get("task") or "")))
    console().print(table)
