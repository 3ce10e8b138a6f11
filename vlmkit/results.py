"""How results leave: as records, paths, a table, pictures in the terminal; and as a contact sheet beside."""

import os
import sys
from collections.abc import Callable, Iterable
from enum import Enum, auto

from vlmkit.errors import VlmkitError, one_line
from vlmkit.preview import Terminal
from vlmkit.records import Record
from vlmkit.search import Found
from vlmkit.sheet import Sheet
from vlmkit.streams import Output, console


class Form(Enum):
    """What standard output, or the file in its place, gets."""

    RECORDS = auto()
    LINES = auto()
    NUL = auto()
    TABLE = auto()
    PICTURES = auto()

    @classmethod
    def of(cls, output: str | None, *, paths: bool, nul: bool, json: bool, preview: bool) -> "Form":
        """The form that the flags ask for. Raises VlmkitError where they exclude each other."""
        if preview + json + (paths or nul) > 1:
            raise VlmkitError("--json, --preview, -l and -0 exclude each other", "choose one of them")
        terminal = output in (None, "-") and sys.stdout is not None and sys.stdout.isatty()
        if preview and not terminal:
            raise VlmkitError("--preview is for a terminal", "leave it out, or use --html FILE")
        if paths or nul:
            return cls.NUL if nul else cls.LINES
        return cls.PICTURES if preview else cls.TABLE if terminal and not json else cls.RECORDS


def deliver(results: Iterable[Found], form: Form, out: Output, page: Output | None, title: str) -> int:
    """Write `results` as they come, in `form` to `out` and as HTML to `page`; how many records there were."""
    write = _writer(form, out)
    sheet = Sheet(page.write, title) if page is not None else None
    count = 0
    for found in results:
        count += len(found.records)
        write(found)
        if sheet is not None:
            sheet.add(found.heading, _pictures(found))
    if sheet is not None:
        sheet.end()
    return count


def _pictures(found: Found) -> list[Record]:
    return found.records if found.pictures is None else found.pictures


def _writer(form: Form, out: Output) -> Callable[[Found], None]:
    """What writes one result in `form`."""
    if form is Form.PICTURES:
        terminal = Terminal(sys.stdout.fileno())
        return lambda found: _show(found, out, terminal)
    if form is Form.TABLE:
        return _print_table
    if form is Form.RECORDS:
        return lambda found: out.write_records(found.records)
    end = b"\0" if form is Form.NUL else b"\n"
    return lambda found: out.write(b"".join(_path(record) + end for record in _pictures(found)))


def _path(record: Record) -> bytes:
    return os.fsencode(str(record.get("image") or record["id"]))


def _name(record: Record) -> str:
    return one_line(str(record.get("image") or record.get("text") or record["id"]))


def _figures(record: Record) -> list[str]:
    """Rank, score and score against the background, as far as there are any."""
    rank = [str(record["rank"])] if "rank" in record else []
    return rank + [f"{record[name]:.3f}" for name in ("score", "relative") if name in record]


def _show(found: Found, out: Output, terminal: Terminal) -> None:
    if found.heading:
        out.write(f"{one_line(found.heading)}\n".encode(errors="backslashreplace"))
    for record in _pictures(found):
        line = "  ".join([*_figures(record), _name(record)])
        out.write(f"{line}\n".encode(errors="backslashreplace") + terminal.picture(record.get("image")))


def _print_table(found: Found) -> None:
    from rich.table import Table
    from rich.text import Text

    records = _pictures(found)
    table = Table(box=None, header_style="bold")
    for name in ("rank", "score", "relative"):
        if records and name in records[0]:
            table.add_column(name, justify="right")
    table.add_column("picture", overflow="fold")
    for record in records:
        table.add_row(*_figures(record), Text(_name(record)))
    terminal = console()
    if found.heading:
        terminal.print(Text(one_line(found.heading)), style="bold")
    terminal.print(table)
