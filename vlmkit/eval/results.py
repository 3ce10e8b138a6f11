"""Figures: a value with its standard error, its interval and the signature that says how it was made."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmkit import __version__
from vlmkit.errors import VlmkitError
from vlmkit.io.records import Record
from vlmkit.metrics.stats import (
    RESAMPLES,
    affordable,
    clustered_stderr,
    counts_of_resamples,
    interval,
    resampled,
    standard_error,
    wilson,
)

if TYPE_CHECKING:
    import numpy as np

DIGITS = 10  # after the decimal point
COUNTED_RESAMPLES = 1000  # of figures that are no function of sums
NO_CATEGORY = "(none)"

OfSums = Callable[["np.ndarray"], "np.ndarray"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric of n items: a function of the sums of some columns over the items.

    `columns` is n x m, `of` takes R x m sums to R values (NaN where there is none). `weights` (n) says how many cases
    an item stands for: 0 where it cannot be scored, 5 where a picture has five captions. `values` (n) are the items'
    own scores, where the figure is their weighted mean. A figure that is no function of sums has `of_counts`, which
    takes R x n counts of the items. `head` begins the signature. Without `has_interval` resamples would be biased.
    """

    name: str
    head: str
    columns: "np.ndarray"
    of: OfSums
    weights: "np.ndarray"
    values: "np.ndarray | None" = None
    of_counts: OfSums | None = None
    has_interval: bool = True

    def at(self, items: "np.ndarray") -> float:
        """The value over the items chosen by indices or a mask."""
        import numpy as np

        if self.of_counts is not None:
            counts = np.zeros(len(self.weights))
            counts[items] = 1
            return float(self.of_counts(counts[None])[0])
        return float(self.of(self.columns[items].sum(axis=0)[None])[0])

    def is_plain(self) -> bool:
        """Whether the figure is the mean of one value an item."""
        return self.values is not None and bool(((self.weights == 0) | (self.weights == 1)).all())


def ratio_of_sums(sums: "np.ndarray") -> "np.ndarray":
    """R x 2 -> R: the first sum over the second, NaN where that is 0."""
    import numpy as np

    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)


def mean_measure(name: str, head: str, values: "Sequence[float] | np.ndarray", weights: Any = None) -> Measure:
    """The (weighted) mean of one value an item. NaN stands for an item that cannot be scored."""
    import numpy as np

    found = np.asarray(values, np.float64)
    heavy = np.where(np.isnan(found), 0.0, 1.0 if weights is None else weights)
    found = np.nan_to_num(found)
    return Measure(name, head, np.column_stack([found * heavy, heavy]), ratio_of_sums, heavy, found)


@dataclass(slots=True)
class Scores:
    """What a task finds out about a predictions file."""

    task: str
    ids: list[str]
    measures: list[Measure]
    marks: dict[str, object]  # parts of the signature: refs, tok, skipped …
    unparsed: "np.ndarray"  # n booleans
    targets: list[int] = field(default_factory=list)  # hashes of the references
    words: list[int] = field(default_factory=list)  # of the prediction
    seconds: list[float] = field(default_factory=list)  # that the prediction took, where that is asked for
    categories: list[str] | None = None
    guessed: "np.ndarray | None" = None  # n booleans: the category is told from the question
    clusters: list[str] | None = None
    details: list[Record] = field(default_factory=list)  # one an item, where --items or --html want them
    confusions: list[tuple[str, str]] = field(default_factory=list)  # wanted, answered
    tells_unparsed: bool = False  # as a figure of its own

    def signature(self, head: str, n: int, ci: str, seed: int, **own: object) -> str:
        marks = {"n": n, **self.marks, **own, "ci": ci, "seed": seed, "vlmkit": __version__}
        return "|".join([head, *(f"{key}:{value}" for key, value in marks.items() if value is not None)])


def chosen(scores: Scores, wanted: Sequence[str]) -> list[Measure]:
    """The measures named by --metric, all without it. Raises VlmkitError for a name that the task does not have."""
    known = {measure.name: measure for measure in scores.measures}
    for name in wanted:
        if name not in known:
            raise VlmkitError(f"no metric {name} of {scores.task} here", f"use {', '.join(known)}")
    return [known[name] for name in wanted] or scores.measures


def groups(scores: Scores) -> "Iterator[tuple[str | None, np.ndarray]]":
    """All items, then those of each category, the hardest by the first measure before the others."""
    import numpy as np

    yield None, np.arange(len(scores.ids))
    if scores.categories is None:
        return
    names, where = np.unique(np.asarray(scores.categories, object).astype(str), return_inverse=True)
    members = [np.flatnonzero(where == i) for i in range(len(names))]
    first = scores.measures[0]
    values = np.nan_to_num([first.at(items) for items in members], nan=np.inf)
    for i in np.argsort(values, kind="stable"):
        yield str(names[i]), members[i]


def figures(scores: Scores, wanted: Sequence[str] = (), seed: int = 0) -> Iterator[Record]:
    """Each metric as a record, over all items and by category."""
    import numpy as np

    measures = chosen(scores, wanted)
    for category, items in groups(scores):
        draws = _draws(measures, items, scores, seed)
        unparsed = int(scores.unparsed[items].sum())
        beside: Record = {"unparsed": unparsed} | ({} if category is None else {"category": category})
        if category is not None and scores.guessed is not None and scores.guessed[items].any():
            beside["guessed"] = int(scores.guessed[items].sum())
        for measure, draw in zip(measures, draws, strict=True):
            n = int(measure.weights[items].sum())
            if n:
                yield _figure(scores, measure, items, draw[np.isfinite(draw)], seed) | beside
        if scores.tells_unparsed and not wanted:
            record = {"metric": "unparsed", "value": unparsed, "n": len(items), "stderr": None, "ci95": None}
            yield record | {"signature": scores.signature(scores.task, len(items), "none", seed)} | beside


def _figure(scores: Scores, measure: Measure, items: "np.ndarray", draw: "np.ndarray", seed: int) -> Record:
    import numpy as np

    value = measure.at(items)
    n = int(measure.weights[items].sum())
    error: float | None = float(draw.std(ddof=1)) if len(draw) > 1 else None
    bounds = interval(draw) if len(draw) > 1 else None
    how = f"bootstrap{len(draw)}"
    if measure.is_plain():
        assert measure.values is not None
        kept = items[measure.weights[items] == 1]
        values = measure.values[kept]
        if scores.clusters is not None and n > 1:
            error = clustered_stderr(values, [scores.clusters[i] for i in kept])
        else:
            error = standard_error(values) if n > 1 else None
            if np.isin(values, (0, 1)).all():
                bounds, how = wilson(values.sum(), n), "wilson"
    if n < 2 and how != "wilson":
        error, bounds = None, None
    own = {"skipped": len(items) - n} if measure.is_plain() else {}
    if np.isfinite(value) and bounds is not None:
        bounds = min(bounds[0], value), max(bounds[1], value)  # resamples of a skewed figure may all lie on one side
    return {
        "metric": measure.name,
        "value": rounded(value),
        "n": n,
        "stderr": rounded(error),
        "ci95": None if bounds is None else [rounded(bound) for bound in bounds],
        "signature": scores.signature(measure.head, n, how if bounds else "none", seed, **own),
    }


def rounded(value: float | None) -> float | None:
    """`value` as JSON takes it: None for NaN, no digits that only the order of a sum decides."""
    return None if value is None or value != value else round(float(value), DIGITS)


def _draws(measures: list[Measure], items: "np.ndarray", scores: Scores, seed: int) -> "list[np.ndarray]":
    """For each measure its values in bootstrap resamples of the items, or of their clusters."""
    import numpy as np

    if len(items) < 2:
        return [np.empty(0)] * len(measures)
    units = cluster_numbers(scores, items)
    sums = resampled(by_unit(np.hstack([measure.columns[items] for measure in measures]), units), RESAMPLES, seed)
    found, start = [], 0
    for measure in measures:
        part = sums[:, start : start + measure.columns.shape[1]]
        start += measure.columns.shape[1]
        if not measure.has_interval:
            found.append(np.empty(0))
        elif measure.of_counts is None:
            found.append(measure.of(part))
        else:
            found.append(counted(measure, items, units, seed))
    return found


def counted(measure: Measure, items: "np.ndarray", units: "np.ndarray | None", seed: int) -> "np.ndarray":
    """R values of a measure that takes counts of the items, in the resamples that a seed always gives."""
    import numpy as np

    assert measure.of_counts is not None
    n = len(items) if units is None else int(units.max()) + 1
    parts = []
    for block in counts_of_resamples(n, affordable(n, COUNTED_RESAMPLES), seed):
        counts = np.zeros((len(block), len(measure.weights)))
        counts[:, items] = block if units is None else block[:, units]
        parts.append(measure.of_counts(counts))
    return np.concatenate(parts)


def cluster_numbers(scores: Scores, items: "np.ndarray") -> "np.ndarray | None":
    """The number of each item's cluster, from 0; None where items stand alone."""
    import numpy as np

    if scores.clusters is None:
        return None
    return np.unique(np.asarray([scores.clusters[i] for i in items]), return_inverse=True)[1]


def by_unit(columns: "np.ndarray", units: "np.ndarray | None") -> "np.ndarray":
    """n x m -> units x m: the columns summed over each cluster."""
    import numpy as np

    if units is None:
        return columns
    return np.column_stack([np.bincount(units, column) for column in columns.T])


def confusions(scores: Scores, most: int) -> Iterator[Record]:
    """The most frequent pairs of a wanted and a given answer that differ, over all items."""
    counted = Counter(scores.confusions)
    for (wanted, given), count in sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))[:most]:
        record = {"metric": "confusion", "value": count, "n": len(scores.ids), "stderr": None, "ci95": None}
        head = scores.signature(scores.task, len(scores.ids), "none", 0)
        yield record | {"signature": head, "wanted": wanted, "answered": given}
