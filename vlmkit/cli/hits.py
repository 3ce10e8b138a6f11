"""How search shows what it found: as records, paths, a table or pictures in the terminal, and as a contact sheet."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Annotated, ClassVar

from vlmkit.cli.options import Json, OutputFile, option
from vlmkit.cli.screen import Name, for_person, heading, print_table, write
from vlmkit.errors import VlmkitError, one_line
from vlmkit.io.records import Record
from vlmkit.io.terminal import ClosedPipe, Output, warn
from vlmkit.render.contact_sheet import contact_sheet
from vlmkit.render.preview import Terminal

if TYPE_CHECKING:
    from vlmkit.search.search import Results

SHOWN = 50  # characters of a line in the table
NUMBERS = ("rank", "score", "relative", "distance", "match")  # of a hit; the last one is a word, for people
STYLES = {"words": "green", "strong": "green", "weak": "dim"}


@dataclass(frozen=True, slots=True)
class DisplayOptions:
    """How results are shown, and where."""

    title: ClassVar[str] = "Display"

    paths: Annotated[
        bool, option("-l, --paths", "Print paths alone, one a line; ids of records without a picture.")
    ] = False
    nul: Annotated[bool, option("-0, --null", "Print paths alone, each ended by NUL.")] = False
    html: Annotated[str | None, option("--html FILE", "Write a contact sheet to FILE, too: one page of HTML.")] = None
    preview: Annotated[
        bool,
        option(
            "--preview",
            "Show the pictures in the terminal, in half blocks where it knows none of kitty's, iTerm2's and sixel.",
        ),
    ] = False
    output: OutputFile = None
    json: Json = False


class Form(Enum):
    """The form in which results are written."""

    RECORDS = auto()
    LINES = auto()
    NUL = auto()
    TABLE = auto()
    PICTURES = auto()

    @classmethod
    def of(cls, shown: DisplayOptions) -> "Form":
        """The output form chosen by the flags. Raises VlmkitError where they exclude each other."""
        paths = shown.paths or shown.nul
        if shown.preview + shown.json + paths > 1:
            raise VlmkitError("--json, --preview, -l and -0 exclude each other", "choose one of them")
        terminal = for_person(shown.output)
        if shown.preview and not terminal:
            raise VlmkitError("--preview requires a terminal", "leave it out, or use --html FILE")
        if paths:
            return cls.NUL if shown.nul else cls.LINES
        return cls.PICTURES if shown.preview else cls.TABLE if terminal and not shown.json else cls.RECORDS

    @property
    def for_person(self) -> bool:
        return self in (Form.TABLE, Form.PICTURES)


def with_matches(results: "Iterable[Results]", count: int, *, keep_scores: bool, quiet: bool) -> "Iterator[Results]":
    """`results` of words among `count` pictures, each hit with how good a `match` it is, in place of its z-score where
    nobody asked for that; `words` where these were found. A note follows where the best one is no better than chance.
    """
    from vlmkit.search.reference import NOISE, chance, match_of

    for found in results:
        pictures = [hit for hit in found.records if hit.get("image") and "relative" in hit]
        scores = [hit["relative"] for hit in pictures]
        for hit, score in zip(pictures, scores, strict=True):
            hit["match"] = match_of(score, count)
        worded = [hit for hit in found.records if "match_line" in hit]
        for hit in worded:
            hit["match"] = "words"
        for hit in () if keep_scores else found.records:
            hit.pop("relative", None)
        yield found
        if scores and not (worded or quiet) and chance(max(scores), count) > NOISE:
            what = f"the best match is no better than chance would find among {count:,} pictures"
            warn(f"{what}: try other words, there may be nothing like it")


def write_results(results: "Iterable[Results]", form: Form, out: Output, page: Output | None, title: str) -> int:
    """Write `results` as they come, in `form` to `out` and as HTML to `page`; how many records there were.

    The page is written although the reader of `out` went away.
    """
    show = _writer(form, out)
    count = 0

    def written() -> Iterator[tuple[str, list[Record]]]:
        nonlocal count, show
        for found in results:
            count += len(found.records)
            try:
                show(found)
            except ClosedPipe:
                if page is None:
                    raise
                show = _nowhere
            yield found.heading, _pictures(found)

    if page is None:
        for _ in written():
            pass
    else:
        for piece in contact_sheet(title, written()):
            page.write(piece)
    return count


def _nowhere(_: "Results") -> None:
    pass


def _pictures(found: "Results") -> list[Record]:
    return found.records if found.pictures is None else found.pictures


def _writer(form: Form, out: Output) -> "Callable[[Results], None]":
    """The function that writes one result list in `form`."""
    if form is Form.PICTURES:
        terminal = Terminal(sys.stdout.fileno())
        return lambda found: _show(found, out, terminal)
    if form is Form.TABLE:
        return lambda found: _print_table(found, out)
    if form is Form.RECORDS:
        return lambda found: out.write_records(found.records)
    end = b"\0" if form is Form.NUL else b"\n"
    return lambda found: out.write(b"".join(_path(record) + end for record in _pictures(found)))


def _path(record: Record) -> bytes:
    return os.fsencode(str(record.get("image") or record["id"]))


def _numbers(record: Record, fields: Iterable[str]) -> list[str]:
    values = (record.get(name, "") for name in fields)
    return [f"{value:.3f}" if isinstance(value, float) else str(value) for value in values]


def _lines(record: Record, titles: list[str]) -> list[str]:
    """The line with the words that were looked for, short enough to stand beside a name."""
    return [one_line(str(record.get("match_line", "")))[:SHOWN] for _ in titles]


def _show(found: "Results", out: Output, terminal: Terminal) -> None:
    if found.heading:
        write(out, heading(found.heading))
    for record in _pictures(found):
        shown = [*_numbers(record, NUMBERS), str(Name.of(record)), str(record.get("match_line", ""))]
        line = "  ".join(filter(None, shown))
        out.write(f"{line}\n".encode(errors="backslashreplace") + terminal.picture(record.get("image")))


def _print_table(found: "Results", out: Output) -> None:
    """Hits with their numbers; of duplicates one group, the picture to keep first."""
    records = _pictures(found)
    if found.pictures is not None:
        rows = [["" if number else "keep", Name.of(record)] for number, record in enumerate(records)]
        print_table(["", ""], rows, above=found.heading, out=out)
        out.write(b"\n")
    elif records:
        numbers = [name for name in NUMBERS if any(name in record for record in records)]
        lines = ["line"] if any(record.get("match_field", "name") != "name" for record in records) else []
        rows = [[*_numbers(record, numbers), Name.of(record), *_lines(record, lines)] for record in records]
        print_table(
            [*numbers, "picture", *lines], rows, right=NUMBERS[:-1], above=found.heading, out=out, styles=STYLES
        )
    elif found.heading:
        write(out, heading(found.heading), "nothing found")
