"""search --by: by words, by meaning, or by both."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.io.records import Failed, Record
from vlmkit.io.terminal import warn

if TYPE_CHECKING:
    import numpy as np

    from vlmkit.index import VectorIndex
    from vlmkit.index.base import WordIndex
    from vlmkit.io.reading import Item
    from vlmkit.search.query import Query
    from vlmkit.search.search import FindWords, Results, SearchOptions


class By(StrEnum):
    BOTH = "both"
    MEANING = "meaning"
    WORDS = "words"


def check_by(by: By | None, query: "Query", excluded: dict[str, Any]) -> None:
    """Raise VlmkitError where there are no words to look for, or one of the `excluded` options is given."""
    if by is not By.WORDS:
        return
    for flag, value in {"--image": query.images, "--like": query.like, **excluded}.items():
        if value not in (None, False, [], ()):
            raise VlmkitError(f"--by words compares no vectors, so it excludes {flag}", "leave out one of them")
    if query.minus and not query.texts:
        raise VlmkitError("--by words has nothing to look for but --minus", "give words that records should have")


def word_index(index: "VectorIndex", by: By | None) -> "WordIndex | None":
    """`index`, if its words are to be looked for. Raises VlmkitError where it has none, and --by asks for them."""
    from vlmkit.index import Index
    from vlmkit.index.parts import Parts
    from vlmkit.index.words import has_fts5

    if by is By.MEANING:
        return None
    if isinstance(index, Index | Parts) and has_fts5():
        return index
    if by is not None:
        what = "cannot be searched by words" if has_fts5() else "cannot be: the SQLite of this Python has no FTS5"
        raise VlmkitError(f"--by {by.value}: {index.name} {what}", "leave it out, or name an index in a folder")
    return None


def words_beside(
    index: "WordIndex | None", query: "Query", among: "np.ndarray | None", *, quiet: bool
) -> "FindWords | None":
    """What finds the words of a query that is looked for by meaning, too."""
    from vlmkit.search.words import finder

    return None if index is None else finder(index, query.words_of_minus, among, _on_wait(quiet=quiet))


def results_by_words(
    index: "WordIndex | None",
    query: "Query",
    queries: "Iterable[Item | Failed] | None",
    options: "SearchOptions",
    quiet: bool,
) -> "Iterator[Results | Failed]":
    """The result list of the words of `query`, or one for each text of `queries`, by words alone."""
    from vlmkit.search.search import is_text, search_words
    from vlmkit.search.words import WordQuery, find_words

    assert index is not None, "word_index refuses others"
    table = index.words(_on_wait(quiet=quiet))

    def found(texts: list[str], fields: Record) -> "Results":
        hits = find_words(table, WordQuery.of(texts, query.words_of_minus), options.among)
        return search_words(index, hits, fields, options)

    if queries is None:
        yield found(query.words, {"query": str(query)})
    for item in queries or ():
        if isinstance(item, Failed):
            yield item
        elif not is_text(item.record):
            yield Failed.of(item.record, "the query has no text", "give it one, or leave out --by words")
        else:
            text = item.record["text"]
            yield found([text], {"query": text, "query_id": item.record.get("id")})._replace(heading=text)


def _on_wait(*, quiet: bool) -> Any:
    from vlmkit.index.store import silent

    return silent if quiet else warn
