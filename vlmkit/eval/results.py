"""Results: each metric's value with its standard error, its interval and the signature that says how it was made."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.eval.task import LOWER, Metric, Scores
from vlmkit.io.records import Record
from vlmkit.metrics.stats import (
    affordable_resamples,
    clustered_stderr,
    counts_of_resamples,
    percentile_interval,
    resampled_sums,
    standard_error,
    wilson,
)

DIGITS = 10  # after the decimal point
COUNTED_RESAMPLES = 1000  # of metrics that are not a function of sums


def select_metrics(scores: Scores, wanted: Sequence[str]) -> list[Metric]:
    """The metrics named by --metric, or all. Raises VlmkitError for a name that the task does not have."""
    known = {metric.name: metric for metric in scores.metrics}
    for name in wanted if scores.ids else ():
        if name not in known:
            raise VlmkitError(f"no metric {name} of {scores.name} here", f"use {', '.join(known)}")
    return [known[name] for name in wanted if name in known] or scores.metrics


def groups(scores: Scores, metrics: Sequence[Metric]) -> Iterator[tuple[str | None, np.ndarray]]:
    """All items, then those of each category, the hardest by the first of `metrics` before the others."""
    yield None, np.arange(len(scores.ids))
    names, where = np.unique(np.asarray(scores.categories, object).astype(str), return_inverse=True)
    members = [np.flatnonzero(where == i) for i in range(len(names))]
    sign = -1 if scores.task.direction(metrics[0].name) == LOWER else 1
    values = np.nan_to_num([sign * metrics[0].at(items) for items in members], nan=np.inf)
    for i in np.argsort(values, kind="stable"):
        yield str(names[i]), members[i]


def results(scores: Scores, seed: int = 0) -> Iterator[Record]:
    """A record for each metric that the options name, over all items and by category."""
    metrics = select_metrics(scores, scores.options.metrics)
    if not scores.ids:
        return
    unparsed, guessed = np.array(scores.unparsed, bool), np.array(scores.guessed, bool)
    for number, (category, items) in enumerate(groups(scores, metrics)):
        own: Record = {"unparsed": int(unparsed[items].sum())}
        if category is not None:
            own |= {"category": category} | ({"guessed": int(n)} if (n := guessed[items].sum()) else {})
            own |= {"hardest": True} if number == 1 else {}  # the first after all items
        for metric, draws in zip(metrics, _draws(metrics, items, scores, seed), strict=True):
            if metric.weights[items].any():
                yield _result(scores, metric, items, draws[np.isfinite(draws)], seed) | own
        if scores.task.reports_unparsed and not scores.options.metrics:
            yield count_record(scores, "unparsed", own["unparsed"], len(items), seed) | own


def _result(scores: Scores, metric: Metric, items: np.ndarray, draws: np.ndarray, seed: int) -> Record:
    n = int(metric.weights[items].sum())
    error = bounds = None
    how = f"bootstrap{len(draws)}"
    if len(draws) > 1 and n > 1:
        error, bounds = float(draws.std(ddof=1)), percentile_interval(draws)
    values, own = metric.item_values(), {}
    if values is not None:
        kept = items[metric.weights[items] == 1]
        own = {"skipped": len(items) - n}
        error = stderr_of_mean(scores, values[kept], kept)
        if (not scores.clusters or n < 2) and np.isin(values[kept], (0, 1)).all():
            bounds, how = wilson(values[kept].sum(), n), "wilson"
    value = metric.at(items)
    signature = scores.signature(metric.head, n, how if bounds else "none", seed, **own)
    return result_record(metric.name, value, n, error, bounds, signature)


def stderr_of_mean(scores: Scores, values: np.ndarray, items: np.ndarray) -> float | None:
    """Standard error of the mean of `values`, one for each of `items`, which may come in clusters."""
    if len(values) < 2:
        return None
    if scores.clusters:
        return clustered_stderr(values, [scores.clusters[i] for i in items])
    return standard_error(values)


def result_record(
    name: str, value: float, n: int, error: float | None, bounds: tuple[float, float] | None, signature: str
) -> Record:
    """One result; the interval is widened to its value, as resamples of a skewed metric may all be on one side."""
    if bounds is not None and value == value:
        bounds = min(bounds[0], value), max(bounds[1], value)
    return {
        "metric": name,
        "value": rounded(value),
        "n": n,
        "stderr": rounded(error),
        "ci95": None if bounds is None else [rounded(bound) for bound in bounds],
        "signature": signature,
    }


def rounded(value: float | None) -> float | None:
    """`value` as JSON takes it: None for NaN, without digits that depend on the order of a sum."""
    return None if value is None or value != value else round(float(value), DIGITS)


def count_record(scores: Scores, name: str, value: int, n: int, seed: int = 0) -> Record:
    """A count, which has no interval."""
    signature = scores.signature(scores.name, n, "none", seed)
    return {"metric": name, "value": value, "n": n, "stderr": None, "ci95": None, "signature": signature}


def confusions(scores: Scores, most: int) -> Iterator[Record]:
    """The most frequent pairs of a wanted and a given answer that differ, over all items."""
    ordered = sorted(Counter(scores.confusions).items(), key=lambda entry: (-entry[1], entry[0]))
    for (wanted, given), count in ordered[:most]:
        yield count_record(scores, "confusion", count, len(scores.ids)) | {"wanted": wanted, "answered": given}


def _draws(metrics: list[Metric], items: np.ndarray, scores: Scores, seed: int) -> list[np.ndarray]:
    """For each metric its values in bootstrap resamples of the items, or of their clusters."""
    if len(items) < 2:
        return [np.empty(0)] * len(metrics)
    units = cluster_numbers(scores, items)
    sums = resampled_sums(sum_by_unit(np.hstack([metric.columns[items] for metric in metrics]), units), seed=seed)
    parts = np.split(sums, np.cumsum([metric.columns.shape[1] for metric in metrics])[:-1], axis=1)

    def draws(metric: Metric, part: np.ndarray) -> np.ndarray:
        if not metric.has_interval:
            return np.empty(0)
        return metric.of_sums(part) if metric.of_counts is None else counted_draws(metric, items, units, seed)

    return [draws(metric, part) for metric, part in zip(metrics, parts, strict=True)]


def counted_draws(metric: Metric, items: np.ndarray, units: np.ndarray | None, seed: int) -> np.ndarray:
    """R values of a metric with `of_counts`, in the resamples that a seed always gives."""
    if metric.of_counts is None:
        raise ValueError(f"{metric.name} is a function of sums")
    n = len(items) if units is None else int(units.max()) + 1
    parts = []
    for block in counts_of_resamples(n, affordable_resamples(n, COUNTED_RESAMPLES), seed):
        counts = np.zeros((len(block), len(metric.weights)))
        counts[:, items] = block if units is None else block[:, units]
        parts.append(metric.of_counts(counts))
    return np.concatenate(parts)


def cluster_numbers(scores: Scores, items: np.ndarray) -> np.ndarray | None:
    """The number of each item's cluster, from 0; None where items are independent."""
    if not scores.clusters:
        return None
    return np.unique(np.asarray([scores.clusters[i] for i in items]), return_inverse=True)[1]


def sum_by_unit(columns: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    """n x m -> units x m: the columns summed over each cluster."""
    return columns if units is None else np.column_stack([np.bincount(units, column) for column in columns.T])
