"""The command search."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from vlmkit.cli.hits import DisplayOptions, Form, with_matches, write_results
from vlmkit.cli.options import (
    AllowPrivate,
    EmbedPrecision,
    Errors,
    IndexNames,
    Run,
    Via,
    check_via,
    model_option,
    option,
    valid_utf8,
)
from vlmkit.cli.queries import embed_queries, read_queries
from vlmkit.cli.words import By, check_by, results_by_words, word_index, words_beside
from vlmkit.errors import Exit, VlmkitError
from vlmkit.io.records import Failed, Record
from vlmkit.io.sources import is_picture_name
from vlmkit.io.terminal import Failures, Output, warn
from vlmkit.io.walk import LeftOut

if TYPE_CHECKING:
    import numpy as np

    from vlmkit.index import Index, VectorIndex
    from vlmkit.index.near import Near
    from vlmkit.index.where import Condition
    from vlmkit.models.types import Embedder
    from vlmkit.search.query import Query
    from vlmkit.search.search import Results, SearchOptions

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
NEAR_HELP = "Only what was taken within KM kilometres of a place in degrees; without a query the nearest first."
WHERE_HELP = "Only records whose field is VALUE; also != < <= > >= and ~ for a glob. May be repeated."
QUERIES_HELP = "One result list for each record of FILE, or line of text; - for a pipe."
BY_HELP = "By words in pictures, captions, texts and names, by meaning, or by both."
RELATIVE_HELP = "Add relative: by how much the query beats everyday texts at this picture."
K_DEFAULT = "10; of duplicates all groups"
SCORE_HELP = "Only results with at least this score; with --relative, this relative score."


_of_duplicates = partial(option, needs=["duplicates"])


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """What is looked for beside the words."""

    title: ClassVar[str] = "Query"
    image: Annotated[Several, option("--image FILE", IMAGE_HELP)] = None
    minus: Annotated[Several, option("--minus TEXT", MINUS_HELP)] = None
    like: Annotated[Several, option("--like ID", LIKE_HELP)] = None
    queries: Annotated[str | None, option("--queries FILE", QUERIES_HELP)] = None
    by: Annotated[By | None, option("--by", BY_HELP, show_default="both, where words match")] = None
    allow_private: AllowPrivate = False


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """Which records come into question, and how many."""

    title: ClassVar[str] = "Results"
    k: Annotated[int | None, option("-k N", "Number of results.", min=1, show_default=K_DEFAULT)] = None
    where: Annotated[Several, option("--where FIELD=VALUE", WHERE_HELP, callback=valid_utf8)] = None
    near: Annotated[str | None, option("--near LAT,LON,KM", NEAR_HELP)] = None
    min_score: Annotated[float | None, option("--min-score S", SCORE_HELP, callback=_no_nan)] = None
    relative: Annotated[bool, option("--relative", RELATIVE_HELP)] = False


@dataclass(frozen=True, slots=True)
class DuplicateOptions:
    """Which pictures are copies of each other."""

    title: ClassVar[str] = "Duplicates"
    duplicates: Annotated[bool, option("--duplicates", "Groups of copies and near copies, the one to keep first.")] = (
        False
    )
    threshold: Annotated[float, _of_duplicates("--threshold S", "The lowest score in a group.", min=-1, max=1)] = 0.95
    prefer: Annotated[Several, _of_duplicates("--prefer DIR", "Keep those under DIR. May be repeated.")] = None
    exact: Annotated[bool, _of_duplicates("--exact", "Compare all pairs, however many, not near ones.")] = False
    dry_run: Annotated[bool, _of_duplicates("--dry-run", "Tell what would be compared, and end.")] = False


ModelFolder = Annotated[str | None, model_option("Where the model of the index is, if it was moved.")]


def search(
    run: Run,
    wanted: QueryOptions,
    chosen: ResultOptions,
    copies: DuplicateOptions,
    shown: DisplayOptions,
    query: QueryText = None,
    index: IndexNames = "default",
    model: ModelFolder = None,
    precision: EmbedPrecision = None,
    via: Via = None,
    errors: Errors = None,
) -> Exit:
    """Find pictures by words, by pictures, or by both.

    The query is embedded with the model that made the index. Several texts, --image, --minus and --like add up to one
    query. Results come best first, with `rank` from 1 and `score`, the cosine: a table on a terminal, records on a
    pipe. A number and a colon before a part are its weight: "2:golden retriever", not "16:9 screen" (a digit follows).

    Words are looked for, too: in `ocr`, `caption`, `captions`, `text`, the name of the file and that of its folder,
    whatever the case and the accents; ä is also ae. "in quotes" is a phrase, inv* a beginning. Records that have more
    than two thirds of the query's words, by how rare these are (one that no record has counts half), are fused with
    those that are near: by 1 / (60 + rank) in each list. They bring `match_line` and `match_field`; `score` stays the
    cosine. --by words opens no model, ranks by that share, then by BM25, leaves out what has the words of --minus,
    and gives no `score`; phrases are then required. --by meaning compares vectors alone, as does Qdrant. An index
    that grew by more than 20,000 records at once, or is of an older vlmkit, reads its words at the first search.

    A cosine alone does not tell whether there is anything like the query. --relative adds `relative`, the number of
    standard deviations by which it exceeds the cosines of the same picture with 153 everyday texts. With mini and
    --relative --min-score 3.3, nine of ten queries for what was not there found nothing, exit code 1; of those for what
    was there, six of ten found something, and fewer in an index of a few pictures.

    On a terminal a query of words shows for each picture how good a `match` it is in this index. words: it has most
    words of the query. strong: were there nothing like the query, the best of as many pictures would match that well
    for one query in 100; good: for one in ten; weak: more often. A note follows the table where the best match is no
    better than what half of such queries would find. With mini, among 31, 80 and 1,000 photographs, the best match was
    strong or good for 62 to 75 % of the queries for what was there and for 10 to 19 % of those for what was not; the
    note came with 7 to 16 % of the first and 48 to 63 % of the others. Other models have not been measured.

    --duplicates compares pictures where both files are there: 1 less the difference of brightness where it is largest.
    At 0.95 a smaller, grey, turned, mirrored or newly saved copy is a copy; two letters are not, nor two photographs of
    one scene. Lower thresholds such as 0.85 forgive small changes, 0.98 little but the size. Other records are compared
    by their vectors, which say what is shown, not whether it is the same. The first of `images` is the one to keep:
    under --prefer, with most pixels, most bytes, not named as a copy, oldest, in this order; `why` says which decided.
    Names of one file (links, hard links) are never copies of each other; they stand in `same_file`.

    --where looks at any field, nested ones as a.b, and at each element of a list, as in labels.label=cat; repeated
    conditions must all hold. Numbers compare as numbers; a record without the field does not match. mtime, ctime and
    taken compare with a year, a date, or a date and time, in local time: mtime>2024 is after that year.

    --near 48.2,16.37,5 keeps what was taken within 5 kilometres of that place, by its lat and lon; hits get their
    `distance` in kilometres. Without a query they come nearest first.
    """
    from vlmkit.index.near import parse_near
    from vlmkit.index.opening import open_index
    from vlmkit.search.near import nearest, with_distances
    from vlmkit.search.query import Query, load_model

    parts = Query(query or [], wanted.image or [], wanted.minus or [], wanted.like or [], wanted.allow_private)
    near = None if chosen.near is None else parse_near(chosen.near)
    by_place = near is not None and not (parts.needs_model or parts.like or wanted.queries or copies.duplicates)
    _check_flags(parts, wanted, chosen, copies, by_place)
    check_via(via, precision)
    _check_files(wanted.queries, shown.output, errors, shown.html)
    form = Form.of(shown)
    judged = form.for_person and parts.is_words and wanted.by is not By.WORDS
    left_out = LeftOut()
    summary = run.summary(left_out, brief=True)
    with open_index(index.split("\n")) as opened, Failures(errors, summary=summary) as failures, ExitStack() as files:
        among = _among(opened, chosen.where or [], near, quiet=run.quiet)
        candidates = cache(lambda: len(opened if among is None else among))  # of several indexes it takes a while
        if copies.dry_run:
            return _report_survey(_one_folder(opened), among, shown.output)
        if copies.duplicates:
            results: Iterable[Results] = islice(_groups(run, _one_folder(opened), copies, among), chosen.k)
            unlimited: Callable[[], Iterable[Results | Failed]] = tuple
        elif near is not None and by_place:
            results, unlimited = [nearest(opened, near, among, chosen.k or RESULTS)], tuple
        else:
            open_model = partial(run.load, precision=precision, via=via, quick_texts=True)
            load = cache(partial(load_model, opened, model, open_model))
            options = _search_options(opened, parts, wanted, chosen, load, among, judged=judged, quiet=run.quiet)
            found = partial(_results, run, opened, parts, wanted, load=load, left_out=left_out)
            unlimited = partial(found, replace(options, min_score=-math.inf, min_relative=-math.inf))
            results = failures.filter_failures(found(options))
            if near is not None:
                results = with_distances(results, near)
            if judged:
                results = with_matches(results, candidates(), keep_scores=chosen.relative, quiet=run.quiet)
        out = files.enter_context(Output(shown.output))
        page = files.enter_context(Output(shown.html)) if shown.html is not None else None
        what = near if by_place else wanted.queries or parts
        title = f"vlmkit search {'--duplicates' if copies.duplicates else what}"
        count = write_results(results, form, out, page, title)
        exit_code = failures.exit_code()
        no_queries = wanted.queries is not None and not failures.seen
        if not (count or no_queries or failures.count or run.quiet):
            if candidates():
                warn(f"nothing found: {_why_nothing(candidates(), parts, wanted, chosen, copies, unlimited)}")
            elif among is None:
                _tell_empty(opened)
    return exit_code or (Exit.OK if count or no_queries else Exit.NOTHING_FOUND)


def _among(index: "VectorIndex", conditions: list[str], near: "Near | None", *, quiet: bool) -> Any:
    """The records that meet `conditions` and are `near`, None without any; what is wrong with those that nothing meets
    is told.
    """
    from vlmkit.index.where import doubtful, parse_condition

    if not conditions and near is None:
        return None
    if not len(index) and not quiet:
        _tell_empty(index)
    parsed: list[Condition | Near] = [*map(parse_condition, conditions), *filter(None, [near])]
    among = index.where(parsed)
    notes = index.explain(unsure) if (unsure := doubtful(parsed, len(among))) else []
    if len(index) and not len(among) and not notes and not quiet:
        what = " and ".join([*conditions, *([str(near)] if near else [])])
        notes = [f"nothing found: none of {len(index):,} records has {what}: change --where"]
    for note in notes:
        warn(note)
    return among


def _tell_empty(index: "VectorIndex") -> None:
    warn(f"nothing found: the index at {index.name} is empty: fill it with vlmkit embed photos/ | vlmkit index")


def _why_nothing(
    count: int,
    query: "Query",
    wanted: QueryOptions,
    chosen: ResultOptions,
    copies: DuplicateOptions,
    unlimited: "Callable[[], Iterable[Results | Failed]]",
) -> str:
    """Why none of `count` records was found, and what to do; `unlimited` searches without --min-score."""
    if copies.duplicates:
        return f"no two of {count:,} records are copies at --threshold {copies.threshold:g}: lower it"
    if wanted.by is By.WORDS:
        return f"none of {count:,} records has words of {wanted.queries or query}: try other words, or --by meaning"
    if wanted.queries is None and not (lists := list(unlimited())):
        return f"the model does not know any word of {query}: use words of a language that it knows"
    if chosen.min_score is None:
        some = bool(chosen.where or chosen.near)
        return f"the index has no other record{' like that: change --where or --near' if some else ': add more to it'}"
    if wanted.queries is not None:
        return f"no query reaches --min-score {chosen.min_score:g} among {count:,} records: lower it"
    field = "relative" if chosen.relative else "score"
    scores = [hit[field] for found in lists if not isinstance(found, Failed) for hit in found.records]
    name = "relative score" if chosen.relative else "score"
    return f"the best {name} among {count:,} records is {max(scores, default=0):.3f}: lower --min-score"


def _search_options(
    index: "VectorIndex",
    query: "Query",
    wanted: QueryOptions,
    chosen: ResultOptions,
    load: "Callable[[], Embedder]",
    among: Any,
    *,
    judged: bool,
    quiet: bool,
) -> "SearchOptions":
    """How to search; `judged`: hits get their z-score, although only --relative shows it."""
    from vlmkit.search.query import slots_of
    from vlmkit.search.reference import picture_vectors, text_vectors
    from vlmkit.search.search import SearchOptions

    reference = None
    if chosen.relative or judged:
        has_words = wanted.queries is not None or query.texts or query.minus
        reference = text_vectors(load()) if index.model and has_words else picture_vectors(index)
    least = {} if chosen.min_score is None else {"min_relative" if chosen.relative else "min_score": chosen.min_score}
    without = frozenset(slots_of(index, query.like))
    words = words_beside(word_index(index, wanted.by), query, among, quiet=quiet)
    return SearchOptions(chosen.k or RESULTS, among, without, reference=reference, words=words, **least)


def _results(
    run: Run,
    index: "VectorIndex",
    query: "Query",
    wanted: QueryOptions,
    options: "SearchOptions",
    load: "Callable[[], Embedder]",
    left_out: LeftOut,
) -> "Iterable[Results | Failed]":
    """The result list of the query, or one for each of --queries; `load` loads the model, if it is needed.

    None for a query of which the model knows no word, and that no record has.
    """
    from vlmkit.search.query import query_vector
    from vlmkit.search.search import search_each, search_one, search_words

    queries = None if wanted.queries is None else read_queries(wanted.queries, left_out)
    if wanted.by is By.WORDS:
        return results_by_words(word_index(index, wanted.by), query, queries, options, quiet=run.quiet)
    if queries is not None:
        vectors = embed_queries(run, queries, index.model, load, wanted.allow_private)
        return search_each(index, vectors, options, run.batch(QUERY_BATCH))
    model = load() if query.needs_model else None
    if model and query.knows_nothing(model):
        words, hits = word_index(index, wanted.by), options.words and options.words(query.words)
        return [search_words(words, hits, {"query": str(query)}, options)] if words and hits else []
    return [search_one(index, query_vector(query, index, model), str(query), options, query.words)]


def _check_flags(
    query: "Query", wanted: QueryOptions, chosen: ResultOptions, copies: DuplicateOptions, by_place: bool
) -> None:
    """Raise VlmkitError unless there is exactly one of a query, --queries, --duplicates and --near alone."""
    things = [query.needs_model or bool(query.like), wanted.queries is not None, copies.duplicates, by_place]
    if sum(things) > 1:
        raise VlmkitError("a query, --queries and --duplicates exclude each other", "choose one of them")
    if copies.duplicates and (chosen.relative or chosen.min_score is not None):
        raise VlmkitError("--duplicates excludes --relative and --min-score", "use --threshold")
    if by_place and (chosen.relative or chosen.min_score is not None):
        raise VlmkitError("--relative and --min-score are about a query, and --near alone is none", "add words")
    if copies.duplicates and wanted.by is not None:
        raise VlmkitError("--duplicates excludes --by", "leave out one of them")
    check_by(wanted.by, query, {"--relative": chosen.relative, "--min-score": chosen.min_score})
    if not any(things) or any(not text.strip() for text in (*query.texts, *query.minus)):
        raise VlmkitError("nothing to look for", 'give words or --image FILE: vlmkit search "a red car"')
    for name in query.texts:
        if is_picture_name(name) and os.path.isfile(name):
            raise VlmkitError(f"{name} is a picture, and a query is in words", "look for what is like it with --image")


def _check_files(*names: str | None) -> None:
    """Raise VlmkitError where two of the files are one."""
    files = [os.path.realpath(name) for name in names if name not in (None, "-")]
    for name in files:
        if files.count(name) > 1:
            raise VlmkitError(f"{name} is named twice", "name another file to write")


def _one_folder(index: "VectorIndex") -> "Index":
    """`index`, in whose folder duplicates are looked for. Raises VlmkitError where it is not one folder."""
    from vlmkit.index import Index

    if isinstance(index, Index):
        return index
    what = f"--duplicates looks in one folder, not in {index.name}"
    raise VlmkitError(what, "bring all into a new one: vlmkit index -i NEW --merge INDEX")


def _report_survey(index: "Index", among: Any, output: str | None) -> Exit:
    from vlmkit.search.duplicates import survey

    with Output(output) as out:
        out.write_records([survey(index, among)])
    return Exit.OK


def _groups(run: Run, index: "Index", copies: DuplicateOptions, among: Any) -> "Iterator[Results]":
    from vlmkit.search.duplicates import duplicates
    from vlmkit.search.search import Results

    how: dict[str, Any] = {} if run.quiet else {"note": warn}
    groups = duplicates(
        index, copies.threshold, among, prefer=copies.prefer or [], workers=run.threads, exact=copies.exact, **how
    )
    for group in groups:
        pictures = [{"id": name, "image": name} for name in group["images"]] or [{"id": key} for key in group["ids"]]
        yield Results(f"{len(pictures)} alike, {group['score']:.3f}", [group], pictures)
