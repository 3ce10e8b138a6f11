"""The command search: its results as records, paths, a table or pictures in the terminal, and as a contact sheet."""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmkit.cli.options import (
    AllowPrivate,
    EmbedPrecision,
    Errors,
    IndexName,
    Json,
    OutputFile,
    Run,
    option,
    valid_utf8,
)
from vlmkit.cli.screen import Name, for_person, print_table
from vlmkit.errors import Exit, VlmkitError, one_line
from vlmkit.io.records import Failed, Record, fingerprint_of
from vlmkit.io.terminal import Failures, Output, stdin_is_terminal, warn
from vlmkit.io.walk import LeftOut
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


def _no_nan(score: float | None) -> float | None:
    if score is not None and math.isnan(score):
        raise VlmkitError("--min-score must be a number", "give a cosine, or a z-score with --relative")
    return score


QueryText = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="QUERY",
        help='What to look for, in words; with a weight as in "2:golden retriever". All parts add up.',
        show_default=False,
        callback=valid_utf8,
    ),
]
Several = list[str] | None
IMAGE_HELP = "Look for pictures like FILE, with a weight as in 0.5:FILE. May be repeated."
MINUS_HELP = "Subtract what these words mean; weights as in QUERY. May be repeated."
LIKE_HELP = "Look for records like this one of the index, itself left out. May be repeated."
WHERE_HELP = "Only records whose field is VALUE; also != < <= > >= and ~ for a glob. May be repeated."
QUERIES_HELP = "One result list for each record of FILE, or line of text; - for a pipe."
RELATIVE_HELP = "Add relative: by how much the query beats everyday texts at this picture."
SCORE_HELP = "Only results with at least this score (--relative: that one)."


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """What is looked for beside the words."""

    image: Annotated[Several, option("--image FILE", IMAGE_HELP)] = None
    minus: Annotated[Several, option("--minus TEXT", MINUS_HELP)] = None
    like: Annotated[Several, option("--like ID", LIKE_HELP)] = None
    queries: Annotated[str | None, option("--queries FILE", QUERIES_HELP)] = None
    duplicates: Annotated[bool, option("--duplicates", "Groups of copies and near copies, the one to keep first.")] = (
        False
    )
    threshold: Annotated[float, option("--threshold S", "duplicates: the lowest score in a group.", min=-1, max=1)] = (
        0.95
    )
    prefer: Annotated[Several, option("--prefer DIR", "duplicates: keep those under DIR. May be repeated.")] = None
    exact: Annotated[bool, option("--exact", "duplicates: compare all pairs, however many; as by default.")] = False
    dry_run: Annotated[bool, option("--dry-run", "duplicates: tell what would be compared, and end.")] = False
    allow_private: AllowPrivate = False


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """Which records come into question, and how many."""

    k: Annotated[int | None, option("-k N", "Number of results; 10, of duplicates all groups.", min=1)] = None
    where: Annotated[Several, option("--where FIELD=VALUE", WHERE_HELP, callback=valid_utf8)] = None
    min_score: Annotated[float | None, option("--min-score S", SCORE_HELP, callback=_no_nan)] = None
    relative: Annotated[bool, option("--relative", RELATIVE_HELP)] = False


@dataclass(frozen=True, slots=True)
class DisplayOptions:
    """How results are shown, and where."""

    paths: Annotated[
        bool, option("-l, --paths", "Print paths alone, one a line; ids of records without a picture.")
    ] = False
    nul: Annotated[bool, option("-0, --null", "Print paths alone, each ended by NUL.")] = False
    html: Annotated[str | None, option("--html FILE", "Write a contact sheet to FILE, too: one page of HTML.")] = None
    preview: Annotated[
        bool, option("--preview", "Show the pictures, in a terminal that knows kitty's, iTerm2's or sixel.")
    ] = False
    output: OutputFile = None
    json: Json = False


ModelFolder = Annotated[str | None, option("-m, --model MODEL", "Where the model of the index is, if it was moved.")]


def search(
    run: Run,
    wanted: QueryOptions,
    chosen: ResultOptions,
    shown: DisplayOptions,
    query: QueryText = None,
    index: IndexName = "default",
    model: ModelFolder = None,
    precision: EmbedPrecision = None,
    errors: Errors = None,
) -> Exit:
    """Find pictures by words, by pictures, or by both.

    The query is embedded with the model that made the index. Several texts, --image, --minus and --like add up to one
    query. Results come best first, with `rank` from 1 and `score`, the cosine: a table on a terminal, records on a
    pipe. A number and a colon before a part are its weight: "2:golden retriever", not "16:9 screen" (a digit follows).

    A cosine alone does not tell whether there is anything like the query. --relative adds `relative`, the number of
    standard deviations by which it exceeds the cosines of the same picture with 153 everyday texts. With mini and
    --relative --min-score 3.3, nine of ten queries for what was not there found nothing, exit code 1; of those for what
    was there, six of ten found something, and fewer in an index of a few pictures.

    --duplicates compares pictures where both files are there: 1 less the difference of brightness where it is largest.
    At 0.95 a smaller, grey, turned, mirrored or newly saved copy is a copy; two letters are not, nor two photographs of
    one scene. Lower thresholds such as 0.85 forgive small changes, 0.98 little but the size. Other records are compared
    by their vectors, which say what is shown, not whether it is the same. The first of `images` is the one to keep:
    under --prefer, with most pixels, most bytes, not named as a copy, oldest, in this order; `why` says which decided.
    Names of one file (links, hard links) are never copies of each other; they stand in `same_file`.

    --where looks at any field, nested ones as a.b, and at each element of a list, as in labels.label=cat; repeated
    conditions must all hold. Numbers compare as numbers; a record without the field does not match. mtime, ctime and
    taken compare with a year, a date, or a date and time, in local time: mtime>2024 is after that year.
    """
    from vlmkit.index import Index, index_folder
    from vlmkit.search.query import Query, load_model

    parts = Query(query or [], wanted.image or [], wanted.minus or [], wanted.like or [], wanted.allow_private)
    _check_flags(parts, wanted, chosen)
    _check_files(wanted.queries, shown.output, errors, shown.html)
    form = Form.of(shown)
    left_out = LeftOut()
    summary = run.summary(left_out, brief=True)
    with Index(index_folder(index)) as opened, Failures(errors, summary=summary) as failures, ExitStack() as files:
        among = _among(opened, chosen.where or [])
        if wanted.dry_run:
            return _report_survey(opened, among, shown.output)
        if wanted.duplicates:
            results: Iterable[Results] = islice(_groups(run, opened, wanted, among), chosen.k)
        else:
            load = partial(load_model, opened, model, partial(run.load, precision=precision, quick_texts=True))
            found = _results(run, opened, parts, wanted, chosen, cache(load), among, left_out)
            results = failures.filter_failures(found)
        out = files.enter_context(Output(shown.output))
        page = files.enter_context(Output(shown.html)) if shown.html is not None else None
        title = f"vlmkit search {'--duplicates' if wanted.duplicates else wanted.queries or parts}"
        count = _write(results, form, out, page, title)
        exit_code = failures.exit_code()
        no_queries = wanted.queries is not None and not failures.seen
    return exit_code or (Exit.OK if count or no_queries else Exit.NOTHING_FOUND)


def _among(index: "Index", conditions: list[str]) -> "np.ndarray | None":
    """The slots that meet `conditions`, None without any; what is wrong with those that nothing meets is told."""
    from vlmkit.index.where import parse_condition

    if not conditions:
        return None
    parsed = [parse_condition(text) for text in conditions]
    among = index.where(parsed)
    doubtful = parsed if not len(among) else [c for c in parsed if c.operator not in ("=", "~")]
    for note in index.explain(doubtful) if doubtful else []:
        warn(note)
    return among


def _results(
    run: Run,
    index: "Index",
    query: "Query",
    wanted: QueryOptions,
    chosen: ResultOptions,
    load: "Callable[[], Embedder]",
    among: "np.ndarray | None",
    left_out: LeftOut,
) -> "Iterable[Results | Failed]":
    """The result list of the query, or one for each of --queries; `load` loads the model, if it is needed."""
    from vlmkit.search.query import query_vector, slots_of
    from vlmkit.search.reference import picture_vectors, text_vectors
    from vlmkit.search.search import SearchOptions, search_each, search_one

    reference = None
    if chosen.relative:
        has_words = wanted.queries is not None or query.texts or query.minus
        reference = text_vectors(load()) if index.state.model and has_words else picture_vectors(index)
    without = frozenset(slots_of(index, query.like))
    options = SearchOptions(chosen.k or RESULTS, among, without, chosen.min_score, reference)
    if wanted.queries is not None:
        vectors = _embed_queries(run, wanted.queries, index.state.model, load, wanted.allow_private, left_out)
        return search_each(index, vectors, options, run.batch(QUERY_BATCH))
    model = load() if query.needs_model else None
    return [search_one(index, query_vector(query, index, model), str(query), options)]


def _check_flags(query: "Query", wanted: QueryOptions, chosen: ResultOptions) -> None:
    """Raise VlmkitError unless there is exactly one of a query, --queries and --duplicates."""
    things = [query.needs_model or bool(query.like), wanted.queries is not None, wanted.duplicates]
    if sum(things) > 1:
        raise VlmkitError("a query, --queries and --duplicates exclude each other", "choose one of them")
    if wanted.duplicates and (chosen.relative or chosen.min_score is not None):
        raise VlmkitError("--duplicates excludes --relative and --min-score", "use --threshold")
    if not wanted.duplicates and (wanted.prefer or wanted.exact or wanted.dry_run):
        raise VlmkitError("--prefer, --exact and --dry-run require --duplicates", "leave them out")
    if not any(things) or any(not text.strip() for text in (*query.texts, *query.minus)):
        raise VlmkitError("nothing to look for", 'give words or --image FILE: vlmkit search "a red car"')


def _check_files(*names: str | None) -> None:
    """Raise VlmkitError where two of the files are one."""
    files = [os.path.realpath(name) for name in names if name not in (None, "-")]
    for name in files:
        if files.count(name) > 1:
            raise VlmkitError(f"{name} is named twice", "name another file to write")


def _embed_queries(
    run: Run, name: str, made_by: str | None, load: "Callable[[], Embedder]", allow_private: bool, left_out: LeftOut
) -> "Iterator[Embedded | Failed]":
    """Records of --queries with their vectors: their own where they are by `made_by`, the model of the index."""
    from vlmkit.embed import own_vectors, vectors
    from vlmkit.io.inputs import Reading, is_picture_name, read_inputs

    if name == "-" and stdin_is_terminal():
        raise VlmkitError("no queries", "pipe records or lines of text in")
    items = read_inputs([name], Reading(texts=not is_picture_name(name), left_out=left_out))
    how: dict[str, Any] = {"batch_size": run.batch_size, "workers": run.threads, "allow_private": allow_private}
    return own_vectors(items, fingerprint_of(made_by or ""), lambda some: vectors(some, load(), reuse=True, **how))


def _report_survey(index: "Index", among: "np.ndarray | None", output: str | None) -> Exit:
    from vlmkit.search.duplicates import survey

    with Output(output) as out:
        out.write_records([survey(index, among)])
    return Exit.OK


def _groups(run: Run, index: "Index", wanted: QueryOptions, among: "np.ndarray | None") -> "Iterator[Results]":
    from vlmkit.search.duplicates import duplicates
    from vlmkit.search.search import Results

    how: dict[str, Any] = {} if run.quiet else {"note": warn}
    groups = duplicates(index, wanted.threshold, among, prefer=wanted.prefer or [], workers=run.threads, **how)
    for group in groups:
        pictures = [{"id": name, "image": name} for name in group["images"]] or [{"id": key} for key in group["ids"]]
        yield Results(f"{len(pictures)} alike, {group['score']:.3f}", [group], pictures)


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
    """The function that writes one result list in `form`."""
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
    """Rank, score and z-score, where a record has them."""
    rank = [str(record["rank"])] if "rank" in record else []
    return rank + [f"{record[name]:.3f}" for name in ("score", "relative") if name in record]


def _show(found: "Results", out: Output, terminal: Terminal) -> None:
    if found.heading:
        out.write(f"{one_line(found.heading)}\n".encode(errors="backslashreplace"))
    for record in _pictures(found):
        line = "  ".join([*_numbers(record), _name(record)])
        out.write(f"{line}\n".encode(errors="backslashreplace") + terminal.picture(record.get("image")))


def _print_table(found: "Results") -> None:
    records = _pictures(found)
    numbers = [name for name in ("rank", "score", "relative") if records and name in records[0]]
    rows = [[*_numbers(record), Name.of(record)] for record in records]
    print_table([*numbers, "picture"], rows, right=numbers, above=found.heading)
