"""Search by words: which records have the words of a query, and how well.

A word weighs its inverse document frequency. A record stands by the share of the query's weight that its words have
(`coverage`), then by BM25 (Robertson and Zaragoza 2009). Only where it has more than two thirds do words change the
order of meaning: a word of a sentence that happens to stand in a file's name tells nothing of what is seen. A word that
no record has weighs half, since it says that the query is not about words, or not about words alone.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmkit.index.base import WordIndex, WordTable
from vlmkit.index.words import NAME, TOKEN, fold, spelled, texts_of, transcribed
from vlmkit.io.records import Record

COUNTED = 200_000  # rows of one word: more weigh as much
FETCHED = 20_000  # rows of one word that are ranked; those of more are looked up beside other words
MOST_TERMS = 64  # of one query
WELL = 2 / 3  # of the weight: as much as a word of two is, if no record has the other
ABSENT = 0.5  # weight of a word that no record has
LINE = 200  # characters of a line that is shown
LEAD = 60  # of these before the first word
PIECE = re.compile(r'"([^"]*)"|\S+')


@dataclass(frozen=True, slots=True)
class Term:
    """A word, or words in this order: `spellings` are lists of tokens, each of which will do.

    The last token of a `prefix` may go on. What stood in quotes is `required`.
    """

    spellings: tuple[tuple[str, ...], ...]
    prefix: bool = False
    required: bool = False

    @property
    def match(self) -> str:
        """The term as FTS5 takes it: tokens are letters and digits alone, so that nothing needs to be escaped."""
        star = " *" if self.prefix else ""
        return "(" + " OR ".join(f'"{" ".join(tokens)}"{star}' for tokens in self.spellings) + ")"

    def is_in(self, tokens: Sequence[str]) -> bool:
        return any(self._starts(wanted, tokens[i:]) for wanted in self.spellings for i in range(len(tokens)))

    def _starts(self, wanted: tuple[str, ...], tokens: Sequence[str]) -> bool:
        *first, last = wanted
        if len(tokens) < len(wanted) or list(tokens[: len(first)]) != first:
            return False
        return tokens[len(first)].startswith(last) if self.prefix else tokens[len(first)] == last


class WordQuery(NamedTuple):
    """The words that records should have, and the groups of which none should have all."""

    terms: tuple[Term, ...]
    without: tuple[tuple[Term, ...], ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str], minus: Iterable[str] = ()) -> "WordQuery":
        """The words of `texts`: "several" in quotes in this order, those with a star at the end as prefixes."""
        terms = [term for text in texts for term in _terms(text)]
        telling = [term for term in terms if not _is_common(term)] or terms
        without = [tuple(term for term in _terms(text) if not _is_common(term)) for text in minus]
        return cls(tuple(dict.fromkeys(telling))[:MOST_TERMS], tuple(filter(None, without)))


class WordHits(NamedTuple):
    """Slots (ascending, int64) with their coverage (0 to 1) and BM25; `terms` with their weights."""

    slots: np.ndarray
    coverage: np.ndarray
    bm25: np.ndarray
    terms: tuple[tuple[Term, float], ...]

    def among(self, chosen: np.ndarray) -> "WordHits":
        """Those where `chosen` is true."""
        return self._replace(slots=self.slots[chosen], coverage=self.coverage[chosen], bm25=self.bm25[chosen])

    @property
    def well_matched(self) -> "WordHits":
        """Those that have enough of the query to change the order of meaning."""
        return self.among(self.coverage > WELL + 1e-9)

    def order(self, cosines: np.ndarray | None = None) -> np.ndarray:
        """The positions of the hits, best first; equal ones by `cosines`, then by slot."""
        last = -self.slots if cosines is None else cosines
        return np.lexsort((-last, -self.bm25.round(6), -self.coverage.round(6)))


def finder(
    index: WordIndex, minus: Sequence[str], among: np.ndarray | None, on_wait: Callable[[str], None]
) -> Callable[[Sequence[str]], WordHits | None]:
    """The function that finds what has the words of texts well enough to be fused with what is near by meaning.

    Not what has one of `minus`: these subtract a meaning, which no record with its words is then near to.
    """
    words_of_minus = [word for text in minus for word in text.split()]

    def find(texts: Sequence[str]) -> WordHits | None:
        query = WordQuery.of(texts, words_of_minus)
        found = find_words(index.words(on_wait), query, among).well_matched
        return found if len(found.slots) else None

    return find


def find_words(words: WordTable, query: WordQuery, among: np.ndarray | None = None) -> WordHits:
    """The records that have a word of `query`, all that stood in quotes, and none of `without`.

    `among` are the slots that come into question (ascending). Where each word is in more than 20,000 records, those
    that have all of them, 20,000 at most: what so many have tells little.
    """
    counts = {term: words.count(term.match, COUNTED) for term in query.terms}
    weights = {term: _weight(count, words.total) for term, count in counts.items()}
    whole = sum(weight if counts[term] else ABSENT * weight for term, weight in weights.items())
    terms = tuple((term, weights[term]) for term in query.terms if counts[term])
    rare = [term for term, _ in terms if counts[term] <= FETCHED]
    found = {term: words.find(term.match, FETCHED) for term in rare}
    if not rare and terms:
        every = words.find(" AND ".join(term.match for term, _ in terms), FETCHED, ranked=False)
        found = dict.fromkeys((term for term, _ in terms), every)
    every_slot = np.sort(np.concatenate([np.empty(0, np.int64), *(slots for slots, _ in found.values())]))
    slots = every_slot[np.diff(every_slot, prepend=-1) > 0]  # np.unique imports numpy.ma, which takes long
    if among is not None:
        slots = np.intersect1d(slots, among, assume_unique=True)
    any_rare = " OR ".join(term.match for term in rare)
    for term, _ in terms:
        if term not in found:
            most = sum(counts[other] for other in rare)
            found[term] = words.find(f"{term.match} AND ({any_rare})", most, ranked=False)
    return _scored(words, query, slots, found, terms, whole)


def _scored(
    words: WordTable,
    query: WordQuery,
    slots: np.ndarray,
    found: dict[Term, tuple[np.ndarray, np.ndarray]],
    terms: tuple[tuple[Term, float], ...],
    whole: float,
) -> WordHits:
    coverage, bm25, kept = np.zeros(len(slots)), np.zeros(len(slots)), np.ones(len(slots), bool)
    for term, weight in terms:
        there, scores = found[term]
        has = np.isin(slots, there, assume_unique=True)
        coverage[has] += weight / whole
        bm25[has] += scores[np.isin(there, slots, assume_unique=True)]
        if term.required:
            kept &= has
    if len(slots) and any(term.required and term not in found for term in query.terms):
        kept[:] = False
    for group in query.without if len(slots) else ():
        match = " AND ".join(term.match for term in group)
        there, _ = words.find(match, COUNTED, ranked=False)
        kept &= ~np.isin(slots, there, assume_unique=True)
    return WordHits(slots, coverage, bm25, terms).among(kept)


def match_line(record: Record, hits: WordHits) -> Record:
    """`match_line` and `match_field`: the line of the record with most of the words, and where it stands.

    Of a name it is the folder and the file.
    """
    best: tuple[str, str] | None = None
    weight = 0.0
    words: tuple[Term, ...] = ()
    for field, text in texts_of(record):
        for line in text.splitlines():
            tokens = TOKEN.findall(fold(spelled(line)))
            here = tuple(term for term, _ in hits.terms if term.is_in(tokens))
            total = sum(value for term, value in hits.terms if term in here)
            if total > weight:
                best, weight, words = (field, line), total, here
    if best is None:
        return {}
    field, line = best
    whole = "/".join(str(record["image"]).split("/")[-2:]) if field == NAME else " ".join(line.split())
    shown = _shortened(whole, words)
    return {"match_line": shown, "match_field": field}


def _shortened(line: str, terms: Sequence[Term]) -> str:
    """`line`, of a long one the part where the first of `terms` stands."""
    if len(line) <= LINE:
        return line
    starts = [found.start() for found in re.finditer(r"\S+", line)]
    first = next((start for start in starts if any(_begins(term, line[start : start + LINE]) for term in terms)), 0)
    start = next((start for start in starts if start >= min(first - LEAD, len(line) - LINE)), first)
    return ("…" if start else "") + line[start : start + LINE].rstrip() + ("…" if start + LINE < len(line) else "")


def _begins(term: Term, text: str) -> bool:
    """Whether the first word of `text` has the first token of `term`."""
    word = text.split(maxsplit=1)[0]
    tokens = TOKEN.findall(fold(spelled(word)))
    firsts = {spelling[0] for spelling in term.spellings}
    return any(token in firsts or (term.prefix and token.startswith(tuple(firsts))) for token in tokens)


def _terms(text: str) -> list[Term]:
    return list(filter(None, map(_term, PIECE.finditer(text))))


def _term(piece: re.Match[str]) -> Term | None:
    phrase, text = piece[1], piece[1] if piece[1] is not None else piece[0]
    spellings = [tuple(TOKEN.findall(fold(one))) for one in (text, transcribed(text))]
    known = tuple(dict.fromkeys(filter(None, spellings)))
    return Term(known, phrase is None and text.endswith("*"), phrase is not None) if known else None


@cache
def common_words() -> frozenset[str]:
    """Words that say nothing of what is looked for, in some languages; a query of these alone keeps them."""
    return frozenset(Path(__file__).with_name("common_words.txt").read_text().split())


def _is_common(term: Term) -> bool:
    return not (term.required or term.prefix) and common_words().issuperset(term.spellings[0])


def _weight(count: int, total: int) -> float:
    """The inverse document frequency of a word that `count` of `total` records have, above 0."""
    return math.log1p((max(total, count) - count + 0.5) / (count + 0.5))
