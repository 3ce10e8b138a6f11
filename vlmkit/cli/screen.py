"""What a person sees on a terminal in place of records: tables, rows that come one by one, and the names in them."""

import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vlmkit.errors import one_line
from vlmkit.io.parts import file_url
from vlmkit.io.terminal import CONTROL, Output, console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from vlmkit.io.records import Record

GAP = 2  # characters between columns
PADDING = re.compile(r" +((?:\x1b\[0m)?) *$", re.MULTILINE)  # that a style may end behind
LEAST = 16  # that a name is shortened to


def for_person(output: str | None, json: bool = False) -> bool:
    """Whether what goes to `output` is read by a person: on a terminal, unless records are asked for."""
    return output in (None, "-") and not json and sys.stdout is not None and sys.stdout.isatty()


@dataclass(frozen=True, slots=True)
class Name:
    """A path in a table: relative where it is in the current folder, shortened in the middle where it is too long."""

    path: str

    @classmethod
    def of(cls, record: "Record") -> "Name":
        """What a record is about: its picture, of several the first, else its text or id."""
        images = record.get("images")
        first = images[0] if isinstance(images, list) and images else None
        return cls(str(record.get("image") or first or record.get("text") or record.get("id")))

    def __str__(self) -> str:
        return one_line(self.path.removeprefix(f"{os.getcwd()}/") or self.path)

    def shortened(self, width: int) -> "Text":
        """The name in at most `width` characters, its folder dim; where it is cut, a link to the whole."""
        from rich.cells import cell_len, set_cell_size
        from rich.text import Text

        shown = str(self)
        cut = cell_len(shown) > width
        if cut:
            head = (width - 1) // 3
            tail = set_cell_size(shown[::-1], width - 1 - head)[::-1]
            shown = f"{set_cell_size(shown, head)}…{tail}"
        text = Text(shown, no_wrap=True)
        text.stylize("dim", 0, shown.rfind("/") + 1)
        if cut and os.path.isabs(self.path):
            text.stylize(f"link {file_url(self.path)}")
        return text


def paragraphs(text: str, *remarks: str) -> "Text":
    """A text of several lines without control characters, and dim remarks on it."""
    from rich.text import Text

    said = CONTROL.sub("", text).rstrip("\n")
    return Text.assemble(said, "  " * bool(said and remarks), (one_line(", ".join(remarks)), "dim"))


def in_line(text: str) -> "Text":
    """A dim text that is cut at the end of its line."""
    from rich.text import Text

    return Text(one_line(text), style="dim", no_wrap=True, overflow="ellipsis")


def _cell(value: object, width: int) -> "Text":
    from rich.text import Text

    if isinstance(value, Name):
        return value.shortened(width)
    return value if isinstance(value, Text) else Text(one_line(str(value)))


def write(out: Output, *parts: "RenderableType") -> None:
    """Write `parts` as the terminal shows them, without spaces at the ends of lines."""
    terminal = console()
    with terminal.capture() as captured:
        for part in parts:
            terminal.print(part)
    out.write(PADDING.sub(r"\1", captured.get()).encode(errors="backslashreplace"))


def heading(text: str) -> "Text":
    """A line in bold."""
    from rich.text import Text

    return Text(one_line(text), style="bold")


@dataclass(slots=True)
class Rows:
    """A table whose rows are written as they come: columns of these `widths` in characters, 0 for the rest of the line.
    Above them stand `titles`, if there are any.
    """

    out: Output
    widths: Sequence[int]
    titles: Sequence[str] = ()
    is_empty: bool = field(default=True, init=False)

    def add(self, *cells: object) -> None:
        """Write one row."""
        above = [list(map(heading, self.titles))] if self.is_empty and self.titles else []
        self.is_empty = False
        write(self.out, *map(self._row, [*above, cells]))

    def _row(self, cells: Sequence[object]) -> "RenderableType":
        from rich.table import Table

        rest = console().width - sum(width + GAP for width in self.widths if width)
        widths = [width or max(rest, LEAST) for width in self.widths]
        row = Table.grid(padding=(0, GAP, 0, 0))
        for width in widths:
            row.add_column(width=width, overflow="fold")
        row.add_row(*(_cell(cell, width) for cell, width in zip(cells, widths, strict=True)))
        return row


def print_facts(facts: Mapping[str, object]) -> None:
    """One line a fact that is known: its name, and what it is."""
    rows = Rows(Output(), (max(map(len, facts)), 0))
    for name, value in facts.items():
        if value not in (None, "", []):
            rows.add(heading(name), value if isinstance(value, str) else _listed(value))


def _listed(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_listed, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def name_width() -> int:
    """The width of a column of names beside one of texts."""
    return max(LEAST, min(48, console().width * 3 // 8))


def print_table(
    titles: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = (),
    above: str = "",
    below: Iterable[str] = (),
    overflow: Literal["fold", "ellipsis"] = "ellipsis",
    out: Output | None = None,
    styles: Mapping[str, str] | None = None,
) -> None:
    """A table on standard output: the columns `right` to the right, the first one never cut, names shortened so that
    the rest has place; `above` it a line in bold, `below` it dim ones.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    columns = [list(column) for column in zip(titles, *cells, strict=True)]
    names = any(isinstance(cell, Name) for row in cells for cell in row)
    rest = [max(cell_len(str(cell)) for cell in c) for c in columns if not any(isinstance(cell, Name) for cell in c)]
    room = max(LEAST, console().width - sum(rest) - GAP * len(rest)) if names else 0
    table = Table(box=None, header_style="bold", padding=(0, GAP, 0, 0), pad_edge=False, show_header=any(titles))
    for number, title in enumerate(titles):
        justify: Literal["left", "right"] = "right" if title in right else "left"
        table.add_column(title, justify=justify, overflow=overflow if number else "fold")
    for row in cells:
        texts = [_cell(cell, room) for cell in row]
        for text in texts:
            text.stylize((styles or {}).get(text.plain, ""))
        table.add_row(*texts)
    notes = [Text(one_line(line), style="dim", no_wrap=True, overflow="ignore") for line in below]
    write(out or Output(), *([heading(above)] if above else []), table, *notes)
