"""What a task declares, its kinds of metrics, and the scores that it fills in."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmkit import __version__
from vlmkit.errors import VlmkitError
from vlmkit.eval.predictions import Options, Row, Source, check_distinct, number_at, read_rows
from vlmkit.io.records import Record
from vlmkit.io.values import text_of, value_at

if TYPE_CHECKING:
    import numpy as np

HIGHER, LOWER, NEITHER = 1, -1, 0  # which value of a metric is better
NO_CATEGORY = "(none)"


OfSums = Callable[["np.ndarray"], "np.ndarray"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of n items: a function of the sums of some columns over the items.

    `columns` is n x m; `of_sums` takes R x m sums to R values (NaN where undefined). `weights` (n) says how many cases
    an item stands for: 0 where it cannot be scored, 5 where a picture has five captions. `values` (n) are the items'
    own scores, where the metric is their weighted mean. A metric that is not a function of sums has `of_counts` (R x n
    counts of the items to R values). `head` begins the signature. Without `has_interval` resamples would be biased.
    """

    name: str
    head: str
    columns: "np.ndarray"
    of_sums: OfSums
    weights: "np.ndarray"
    values: "np.ndarray | None" = None
    of_counts: OfSums | None = None
    has_interval: bool = True

    def at(self, items: "np.ndarray") -> float:
        """The value over the items chosen by indices."""
        import numpy as np

        if self.of_counts is not None:
            return float(self.of_counts(np.bincount(items, minlength=len(self.weights)).astype(np.float64)[None])[0])
        return float(self.of_sums(self.columns[items].sum(axis=0)[None])[0])

    def item_values(self) -> "np.ndarray | None":
        """The n values whose plain mean is the metric; None where it is not the mean of one value an item."""
        return self.values if self.values is not None and bool((self.weights <= 1).all()) else None


def ratio_metric(name: str, head: str, numerators: Any, denominators: Any) -> Metric:
    """The sum of n numerators over the sum of n denominators, such as precision; NaN where that is 0."""
    import numpy as np

    return Metric(name, head, np.column_stack([numerators, denominators]) * 1.0, _ratio, np.ones(len(numerators)))


def _ratio(sums: "np.ndarray") -> "np.ndarray":
    """R x 2 -> R."""
    import numpy as np

    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)


def mean_metric(name: str, head: str, values: "Sequence[float] | np.ndarray", weights: Any = 1.0) -> Metric:
    """The (weighted) mean of one value an item. NaN marks an item that cannot be scored."""
    import numpy as np

    found = np.asarray(values, np.float64)
    weights = np.where(np.isnan(found), 0.0, weights)
    found = np.nan_to_num(found)
    return Metric(name, head, np.column_stack([found * weights, weights]), _ratio, weights, found)


def counted_metric(name: str, head: str, weights: "np.ndarray", of_counts: OfSums, has_interval: bool = True) -> Metric:
    """A metric that is not a function of sums: `of_counts` takes R x n counts of the items to R values."""
    import numpy as np

    return Metric(name, head, np.zeros((len(weights), 1)), _ratio, weights, None, of_counts, has_interval)


@dataclass(frozen=True, slots=True)
class Task:
    """One task of `vlmkit eval`, as its file in `eval/tasks` declares it.

    `score` takes the scores to fill, the rows and the variant. `metrics` maps names to their direction; a name may end
    in `*`. `predictions` and `references` are the record's fields, of which the first that it has counts. The first of
    `variants` is the default.
    """

    score: Callable[["Scores", Iterable[Row], str], None]
    metrics: Mapping[str, int]
    predictions: tuple[str, ...] = ("answer",)
    references: tuple[str, ...] = ("answers", "target")
    variants: tuple[str, ...] = ()
    read: Callable[[Source, Options], Iterable[Row]] | None = None  # in place of predictions.read_rows
    reports_unparsed: bool = False  # as a metric of its own
    makes_predictions: bool = False  # `score` sets those of the rows, and passes each row to `scores.measure`

    def rows(self, source: Source, options: Options) -> Iterable[Row]:
        """The rows of `source`."""
        if self.read is not None:
            return self.read(source, options)
        return read_rows(source, options, self.predictions, self.references)

    def variant(self, wanted: str | None) -> str:
        """The variant called `wanted`, the first without. Raises VlmkitError for one that the task does not have."""
        if wanted is not None and self.variants and wanted not in self.variants:
            raise VlmkitError(f"unknown variant {wanted}", f"use {', '.join(self.variants)}")
        return wanted or next(iter(self.variants), "")

    def direction(self, metric: str) -> int | None:
        """HIGHER, LOWER or NEITHER for a metric of this task, None for others."""
        return next((way for name, way in self.metrics.items() if fnmatchcase(metric, name)), None)


@dataclass(slots=True)
class Scores:
    """The scores of the n items of a predictions file; a list has one entry an item, or none at all."""

    name: str
    task: Task
    options: Options
    metrics: list[Metric] = field(default_factory=list)
    signature_fields: dict[str, object] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)  # hashes of the references
    reference_counts: set[int] = field(default_factory=set)
    words: list[int] = field(default_factory=list)  # of the prediction
    seconds: list[float] = field(default_factory=list)  # that the prediction took
    categories: list[str] = field(default_factory=list)
    guessed: list[bool] = field(default_factory=list)  # whether the category is guessed from the question
    clusters: list[str] = field(default_factory=list)
    unparsed: list[bool] = field(default_factory=list)
    details: list[Record] = field(default_factory=list)
    confusions: list[tuple[str, str]] = field(default_factory=list)  # wanted, answered
    measure: Callable[[Row], None] | None = None  # computes metrics of other packages

    def collect(self, rows: Iterable[Row]) -> Iterator[Row]:
        """`rows` as they come; what every task needs of them is noted.

        Raises VlmkitError where ids occur twice, or --by, --cluster or --latency name no field.
        """
        by, cluster, latency = self.options.by, self.options.cluster, self.options.latency
        for row in rows:
            self.ids.append(row.id)
            self.reference_counts.add(len(row.references))
            self.targets.append(hash(tuple(sorted(row.references))))
            self.words.append(len((text_of(row.prediction) or "").split()))
            if latency is not None:
                self.seconds.append(number_at(row.record, latency, row.id))
            if by is not None:
                category = text_of(value_at(row.record, by))
                self.guessed.append(not category and by == "category" and bool(row.question))
                self.categories.append(guess_category(row.question) if self.guessed[-1] else category or NO_CATEGORY)
            if cluster is not None:
                group = text_of(value_at(row.record, cluster))
                if group is None:
                    raise VlmkitError(f"{row.id} has no field {cluster}", "name the field with --cluster FIELD")
                self.clusters.append(group)
            yield row
        check_distinct(self.ids)
        if self.categories and set(self.categories) == {NO_CATEGORY}:
            raise VlmkitError(f"no item has a field {by}", "name the field with --by FIELD")

    def add_detail(self, row: Row, shown: Record) -> None:
        """Note what --items and --html show of an item: the record's picture and question, then `shown`."""
        if self.options.details:
            image = row.record.get("image")
            known = {"id": row.id, "image": image if isinstance(image, str) else None, "question": row.question or None}
            if self.categories:
                known["category"] = self.categories[len(self.details)]
            self.details.append({k: v for k, v in known.items() if v is not None} | shown)

    def signature(self, head: str, n: int, ci: str, seed: int, **own: object) -> str:
        """`head|n:…|refs:…|…`: how a value over n items was made."""
        fields = {"n": n, **self.signature_fields, **own, "ci": ci, "seed": seed, "vlmkit": __version__}
        return "|".join([head, *(f"{name}:{value}" for name, value in fields.items() if value is not None)])


class ItemScore(NamedTuple):
    """How an item was scored: its numbers for the metrics, and what --items and --html show."""

    columns: tuple[Any, ...]
    score: float  # the worst first
    rule: str  # that decided
    unparsed: bool = False
    compared: tuple[str, Sequence[str]] | None = None  # the strings of the prediction and the references
    shown: Mapping[str, Any] = {}
    confusion: tuple[str, str] | None = None


def summarize_means(scores: Scores, variant: str, *columns: Sequence[float]) -> list[Metric]:
    """The task's metrics, in its order, as means of the columns."""
    named = zip(scores.task.metrics, columns, strict=True)
    return [mean_metric(name, f"{name}:{variant}", values) for name, values in named]


def score_each(
    score_item: Callable[[str, Row, str], ItemScore], summarize: Callable[..., list[Metric]] = summarize_means
) -> Callable[[Scores, Iterable[Row], str], None]:
    """The score function of a task whose items are scored one by one.

    `score_item` takes the prediction as text, the row and the variant; `summarize` takes the scores, the variant and,
    for each of the items' columns, its n values, and returns the metrics.
    """

    def score(scores: Scores, rows: Iterable[Row], variant: str) -> None:
        columns = []
        for row in rows:
            prediction = text_of(row.prediction) or ""
            item = score_item(row.answer(), row, variant)
            columns.append(item.columns)
            scores.unparsed.append(item.unparsed)
            if item.confusion is not None:
                scores.confusions.append(item.confusion)
            if scores.options.details:
                shown: Record = {"prediction": prediction, "references": row.references}
                if item.compared is not None:
                    said, wanted = item.compared
                    shown["compared"] = {"prediction": said, "references": sorted(set(wanted))}
                scores.add_detail(row, shown | dict(item.shown) | {"score": item.score, "rule": item.rule})
        if columns:
            scores.metrics = summarize(scores, variant, *zip(*columns, strict=True))

    return score


# In this order: the first that fits decides.
QUESTION_TYPES = {
    "counting": r"\bhow (man|many|much)\b|\bnumber of\b|\bcount\b",
    "yes-no": r"^(is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|am|isn't|aren't)\b",
    "color": r"\bcolou?rs?\b",
    "reading": r"\b(say|says|said|written|text|word|words|letter|letters|read|spell|spelled|brand|title|sign|"
    r"printed|logo)\b",
    "spatial": r"^where\b|\b(left|right|above|below|under|beneath|behind|front|beside|between|next to|on top|top of|"
    r"bottom|near|nearest|inside|outside|around|corner|side|position|location|located)\b",
}


def guess_category(question: str) -> str:
    """The type of a question by its words: counting, yes-no, color, reading, spatial, or other."""
    text = question.strip().lower()
    return next((name for name, pattern in QUESTION_TYPES.items() if re.search(pattern, text)), "other")
