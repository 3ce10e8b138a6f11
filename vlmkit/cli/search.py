"""The command search: its results as records, paths, a table or pictures in the terminal, and as a contact sheet."""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from enum import Enum, auto
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from vlmkit.cli.options import AllowPrivate, EmbedPrecision, Errors, IndexName, Json, OutputFile, Run, valid_utf8
from vlmkit.errors import Exit, VlmkitError, one_line
from vlmkit.io.records import Failed, Record
from vlmkit.io.terminal import Failures, Output, console, stdin_is_terminal
from vlmkit.render.contact_sheet import contact_sheet
from vlmkit.render.preview import Terminal

if TYPE_CHECKING:
    import numpy as np

    from vlmkit.index import Index
    from vlmkit.models.types import Embedder
    from vlmkit.search.query import Query
    from vlmkit.search.search import Results

    Embedded = tuple[Record, np.ndarray]

QUERY_BATCH = 16
RESULTS = 10


def _several(flag: str, metavar: str, text: str, callback: Callable[..., object] | None = None):
    return typer.Option(flag, metavar=metavar, help=f"{text} May be repeated.", callback=callback)


def _no_nan(score: float | None) -> float | None:
    if score is not None and math.isnan(score):
        raise VlmkitError("--min-score must be a number", "give a cosine, or a z-score with --relative")
    return score


def search(
    run: Run,
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY",
            help='What to look for, in words; with a weight as in "2:golden retriever". All parts add up.',
            show_default=False,
            callback=valid_utf8,
        ),
    ] = None,
    index: IndexName = "default",
    k: Annotated[
        int | None, typer.Option("-k", min=1, metavar="N", help="Number of results; 10, of duplicates all groups.")
    ] = None,
    image: Annotated[
        list[str] | None, _several("--image", "FILE", "Look for pictures like FILE, with a weight as in 0.5:FILE.")
    ] = None,
    minus: Annotated[
        list[str] | None, _several("--minus", "TEXT", "Subtract what these words mean; weights as in QUERY.")
    ] = None,
    like: Annotated[
        list[str] | None, _several("--like", "ID", "Look for records like this one of the index, itself left out.")
    ] = None,
    where: Annotated[
        list[str] | None,
        _several(
            "--where",
            "FIELD=VALUE",
            "Only records whose field is VALUE; also != < <= > >= and ~ for a glob.",
            valid_utf8,
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            metavar="S",
            callback=_no_nan,
            help="Only results with at least this score (--relative: that one).",
        ),
    ] = None,
    relative: Annotated[
        bool,
        typer.Option("--relative", help="Add relative: by how much the query beats everyday texts at this picture."),
    ] = False,
    queries: Annotated[
        str | None,
        typer.Option(
            "--queries", metavar="FILE", help="One result list for each record of FILE, or line of text; - for a pipe."
        ),
    ] = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Groups of equal and nearly equal pictures, largest picture first.")
    ] = False,
    threshold: Annotated[
        float, typer.Option(min=-1, max=1, metavar="S", help="duplicates: the lowest score in a group.")
    ] = 0.95,
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", metavar="MODEL", help="Where the model of the index is, if it was moved."),
    ] = None,
    precision: EmbedPrecision = None,
    paths: Annotated[
        bool, typer.Option("-l", "--paths", help="Print paths alone, one a line; ids of what is no picture.")
    ] = False,
    nul: Annotated[bool, typer.Option("-0", "--null", help="Print paths alone, each ended by NUL.")] = False,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a contact sheet to FILE, too: one page of HTML.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show the pictures, in a terminal that knows kitty's, iTerm2's or sixel.")
    ] = False,
    allow_private: AllowPrivate = False,
    output: OutputFile = None,
    errors: Errors = None,
    json: Json = False,
) -> Exit:
    """Find pictures by words, by pictures, or by both.

    The query is embedded with the model that made the index. Several texts, --image, --minus and --like add up to one
    query. Results come best first, with `rank` from 1 and `score`, the cosine: a table on a terminal, records on a
    pipe. A number and a colon before a part are its weight: "2:golden retriever", not "16:9 screen" (a digit follows).

    A cosine alone does not tell whether there is anything like the query. --relative adds `relative`, the number of
    standard deviations by which it exceeds the cosines of the same picture with 153 everyday texts. With mini and
    --relative --min-score 3.3, nine of ten queries for what was not there found nothing, exit code 1; of those for what
    was there, six of ten found something, and fewer in an index of a few pictures.

    --where looks at any field, nested ones as a.b, and at each element of a list, as in labels.label=cat; repeated
    conditions must all hold.
    Numbers compare as numbers; a record without the field does not match.
    """
    from vlmkit.index import Index, index_folder
    from vlmkit.index.where import parse_condition
    from vlmkit.search.query import Query, load_model, query_vector, slots_of
    from vlmkit.search.reference import picture_vectors, text_vectors
    from vlmkit.search.search import SearchOptions, search_each, search_one

    asked = Query(query or [], image or [], minus or [], like or [], allow_private)
    _check_flags(asked, queries, duplicates, relative or min_score is not None)
    _check_files(queries, output, errors, html)
    form = Form.of(output, paths=paths, nul=nul, json=json, preview=preview)
    conditions = [parse_condition(text) for text in where or []]
    with Index(index_folder(index)) as opened, Failures(errors) as failures, ExitStack() as files:
        among = opened.where(conditions) if conditions else None
        results: Iterable[Results]
        if duplicates:
            results = islice(_groups(opened, threshold, among), k)
        else:
            embedder = reference = None
            if queries is not None or asked.needs_model:
                embedder = load_model(opened, model, lambda name: run.load(name, precision, quick_texts=True))
            if relative:
                has_words = queries is not None or asked.texts or asked.minus
                reference = text_vectors(embedder) if embedder is not None and has_words else picture_vectors(opened)
            options = SearchOptions(k or RESULTS, among, frozenset(slots_of(opened, asked.like)), min_score, reference)
            if queries is not None and embedder is not None:
                vectors = _embed_queries(run, queries, embedder, allow_private)
                results = failures.filter_failures(search_each(opened, vectors, options, run.batch(QUERY_BATCH)))
            else:
                results = [search_one(opened, query_vector(asked, opened, embedder), str(asked), options)]
        out = files.enter_context(Output(output))
        page = files.enter_context(Output(html)) if html is not None else None
        title = f"vlmkit search {'--duplicates' if duplicates else queries or asked}"
        found = _write(results, form, out, page, title)
        exit_code = failures.exit_code()
        nothing_asked = queries is not None and not failures.seen
    return exit_code or (Exit.OK if found or nothing_asked else Exit.NOTHING_FOUND)


def _check_flags(query: "Query", queries: str | None, duplicates: bool, scored: bool) -> None:
    """Raise VlmkitError unless exactly one thing is to be done."""
    asked = [query.needs_model or bool(query.like), queries is not None, duplicates]
    if sum(asked) > 1:
        raise VlmkitError("a query, --queries and --duplicates exclude each other", "choose one of them")
    if duplicates and scored:
        raise VlmkitError("--duplicates has no query to score", "use --threshold")
    if not any(asked) or any(not text.strip() for text in (*query.texts, *query.minus)):
        raise VlmkitError("nothing to look for", 'give words or --image FILE: vlmkit search "a red car"')


def _check_files(*names: str | None) -> None:
    """Raise VlmkitError where two of the files are one."""
    files = [os.path.realpath(name) for name in names if name not in (None, "-")]
    for name in files:
        if files.count(name) > 1:
            raise VlmkitError(f"{name} is named twice", "name another file to write")


def _embed_queries(run: Run, name: str, model: "Embedder", allow_private: bool) -> "Iterator[Embedded | Failed]":
    from vlmkit.embed import vectors
    from vlmkit.io.inputs import Reading, is_picture_name, read_inputs

    if name == "-" and stdin_is_terminal():
        raise VlmkitError("no queries", "pipe records or lines of text in")
    items = read_inputs([name], Reading(texts=not is_picture_name(name)))
    return vectors(
        items, model, reuse=True, batch_size=run.batch_size, workers=run.threads, allow_private=allow_private
    )


def _groups(index: "Index", threshold: float, among: "np.ndarray | None") -> "Iterator[Results]":
    from vlmkit.search.duplicates import duplicates
    from vlmkit.search.search import Results

    for group in duplicates(index, threshold, among):
        pictures = [{"id": name, "image": name} for name in group["images"]] or [{"id": key} for key in group["ids"]]
        yield Results(f"{len(pictures)} alike, {group['score']:.3f}", [group], pictures)


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


def _write(results: "Iterable[Results]", form: Form, out: Output, page: Output | None, title: str) -> int:
    """Write `results` as they come, in `form` to `out` and as HTML to `page`; how many records there were."""
    write = _writer(form, out)
    count = 0

    def written() -> Iterator[tuple[str, list[Record]]]:
        nonlocal count
        for found in results:
            count += len(found.records)
            write(found)
            yield found.heading, _pictures(found)

    if page is None:
        for _ in written():
            pass
    else:
        for piece in contact_sheet(title, written()):
            page.write(piece)
    return count


def _pictures(found: "Results") -> list[Record]:
    return found.records if found.pictures is None else found.pictures


def _writer(form: Form, out: Output) -> "Callable[[Results], None]":
    """What writes one result list in `form`."""
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


def _numbers(record: Record) -> list[str]:
    """Rank, score and z-score, as far as there are any."""
    rank = [str(record["rank"])] if "rank" in record else []
    return rank + [f"{record[name]:.3f}" for name in ("score", "relative") if name in record]


def _show(found: "Results", out: Output, terminal: Terminal) -> None:
    if found.heading:
        out.write(f"{one_line(found.heading)}\n".encode(errors="backslashreplace"))
    for record in _pictures(found):
        line = "  ".join([*_numbers(record), _name(record)])
        out.write(f"{line}\n".encode(errors="backslashreplace") + terminal.picture(record.get("image")))


def _print_table(found: "Results") -> None:
    from rich.table import Table
    from rich.text import Text

    records = _pictures(found)
    table = Table(box=None, header_style="bold")
    for name in ("rank", "score", "relative"):
        if records and name in records[0]:
            table.add_column(name, justify="right")
    table.add_column("picture", overflow="fold")
    for record in records:
        table.add_row(*_numbers(record), Text(_name(record)))
    terminal = console()
    if found.heading:
        terminal.print(Text(one_line(found.heading)), style="bold")
    terminal.print(table)
