"""eval compare: the differences A minus B on the same items, with intervals and p values."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.eval.predictions import Options, Row, Source, is_lmms_sample, list_ids, read_records
from vlmkit.eval.registry import SUGGESTED_TASKS, TASKS, evaluate
from vlmkit.eval.results import (
    cluster_numbers,
    counted_draws,
    groups,
    result_record,
    rounded,
    select_metrics,
    stderr_of_mean,
    sum_by_unit,
)
from vlmkit.eval.task import HIGHER, LOWER, NEITHER, Metric, Scores, mean_metric
from vlmkit.io.records import Record
from vlmkit.io.values import value_at
from vlmkit.metrics.stats import (
    bootstrap_p,
    holm,
    mcnemar,
    percentile_interval,
    permutation_p,
    permuted_sums,
    resampled_sums,
)

ALPHA = 0.05
RIGHT = 0.5  # a score from which an item counts as right
SOFT = ("vqa_accuracy", "anls")
WEIGHTS = ("quality", "latency", "length")
WEIGHTS_EXAMPLE = "quality=0.4,latency=0.3,length=0.3"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files' scores of the same items in the same order, and the names of the files."""

    a: Scores
    b: Scores
    files: tuple[str, str]


def task_of(source: Source, metrics: tuple[str, ...]) -> str:
    """The task to compare two files in: the metric's, or the one that the first record's fields suggest.

    `field` where the metrics are fields with numbers. Raises VlmkitError where no task fits.
    """
    for metric in metrics:
        for name in TASKS.builtin:
            if TASKS.load(name).direction(metric) is not None:
                return name
    first = next(read_records(source), None)
    if first is None:
        return "vqa"  # without items any task will do
    if metrics and all(isinstance(value_at(first, metric), int | float) for metric in metrics):
        return "field"
    for field, name in SUGGESTED_TASKS.items():
        if field in first:
            return name
    if source.is_table() or is_lmms_sample(first):
        return "vqa"
    raise VlmkitError(f"{source.name}: no task fits its fields", "name one with --task, or a metric with --metric")


def score_pairs(task: str, first: Source, others: Sequence[Source], options: Options) -> Iterator[Pair]:
    """The scores of `first` and of each other file. Raises VlmkitError for ids or references that are not the same."""
    left = evaluate(task, first, options)
    for other in others:
        yield _pair(task, left, first, other, options)


def _pair(task: str, left: Scores, a: Source, b: Source, options: Options) -> Pair:
    """Both files' scores, joined on the ids."""

    def in_order(rows: Iterable[Row]) -> Iterator[Row]:
        """The rows of B in the order of A; a row is held only until its turn comes."""
        waiting: dict[str, Row] = {}
        seen: set[str] = set()
        wanted = iter(left.ids)
        following = next(wanted, None)
        for row in rows:
            if row.id in seen:
                raise VlmkitError(f"duplicate ids: {row.id}", "give each item its own with --id FIELD")
            seen.add(row.id)
            waiting[row.id] = row
            while following in waiting:
                yield waiting.pop(following)
                following = next(wanted, None)
        for ids, name in ((set(left.ids) - seen, b.name), (set(waiting), a.name)):
            if ids:
                what = f"missing in {name}: {list_ids(sorted(ids))}"
                raise VlmkitError(what, "compare predictions for the same items")

    right = evaluate(task, b, options, in_order)
    pairs = zip(left.ids, left.targets, right.targets, strict=True)
    changed = [key for key, wanted, other_wanted in pairs if wanted != other_wanted]
    if changed:
        what = f"other references in {b.name}: {list_ids(changed)}"
        raise VlmkitError(what, "score both against the same references")
    both = {"sha": f"{left.signature_fields['sha']}-{right.signature_fields['sha']}"}
    return Pair(replace(left, signature_fields=left.signature_fields | both), right, (a.name, b.name))


def differences(pair: Pair, seed: int) -> Iterator[Record]:
    """Each metric's A minus B, over all items, then by category with p corrected for the number of categories."""
    others = {metric.name: metric for metric in pair.b.metrics}
    metrics = [m for m in select_metrics(pair.a, pair.a.options.metrics) if m.name in others and m.has_interval]
    records: list[Record] = []
    for category, items in groups(pair.a, metrics) if metrics else ():
        for metric in metrics:
            record = _difference(pair, metric, others[metric.name], items, seed)
            record["files"] = list(pair.files)
            records.append(record if category is None else record | {"category": category})
    for metric in metrics:
        tested = [record for record in records if record["metric"] == metric.name and "category" in record]
        for record, p in zip(tested, holm([record["p"] for record in tested]), strict=True):
            record["p_holm"] = _significant(p)
    yield from records


def _difference(pair: Pair, a: Metric, b: Metric, items: np.ndarray, seed: int) -> Record:
    units = cluster_numbers(pair.a, items)
    values = a.at(items), b.at(items)
    difference = values[0] - values[1]
    draws, p, test = _resample(a, b, items, units, difference, seed)
    draws = draws[np.isfinite(draws)]
    enough = len(items if units is None else np.unique(units)) > 1 and len(draws) > 1
    bounds = percentile_interval(draws) if enough else None
    paired = _paired_values(a, b, items)
    if paired is not None:
        error = stderr_of_mean(pair.a, paired[0] - paired[1], paired[2])
    else:
        error = float(draws.std(ddof=1)) if len(items) > 1 else None
    n = int(a.weights[items].sum())
    ci = f"bootstrap{len(draws)}" if bounds else "none"
    record = result_record(a.name, difference, n, error, bounds, pair.a.signature(f"compare|{a.head}", n, ci, seed))
    record |= {"a": rounded(values[0]), "b": rounded(values[1]), "p": _significant(p), "test": test}
    record["better"] = _better(pair.a.task.direction(a.name), record["ci95"], p)
    return record | (_mcnemar(a.name, *paired[:2]) if paired is not None and units is None else {})


def _resample(
    a: Metric, b: Metric, items: np.ndarray, units: np.ndarray | None, difference: float, seed: int
) -> "tuple[np.ndarray, float, str]":
    """Bootstrap draws of A minus B, the two-sided p and the name of its test."""
    if a.of_counts is not None:
        draws = counted_draws(a, items, units, seed) - counted_draws(b, items, units, seed)
        return draws, bootstrap_p(draws), "bootstrap"
    ours, theirs = sum_by_unit(a.columns[items], units), sum_by_unit(b.columns[items], units)
    width = ours.shape[1]
    sums = resampled_sums(np.hstack([ours, theirs]), seed=seed)
    moved = permuted_sums(ours - theirs, seed=seed)
    permuted = a.of_sums(ours.sum(axis=0) - moved) - b.of_sums(theirs.sum(axis=0) + moved)
    return a.of_sums(sums[:, :width]) - b.of_sums(sums[:, width:]), permutation_p(permuted, difference), "permutation"


def _paired_values(a: Metric, b: Metric, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Both metrics' values of the items that both can score, and these items; None for metrics without item values."""
    ours, theirs = a.item_values(), b.item_values()
    if ours is None or theirs is None:
        return None
    kept = items[(a.weights[items] == 1) & (b.weights[items] == 1)]
    return ours[kept], theirs[kept], kept


def _mcnemar(name: str, ours: np.ndarray, theirs: np.ndarray) -> Record:
    """McNemar's exact test where items are right or wrong (soft accuracy: at 0.5 and more)."""
    if name not in SOFT and not np.isin([ours, theirs], (0, 1)).all():
        return {}
    right = ours >= RIGHT, theirs >= RIGHT
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return {"mcnemar": _significant(mcnemar(ours, theirs)), "only_a": only_a, "only_b": only_b}


def _better(direction: int | None, interval: list[float] | None, p: float) -> str | None:
    """The better file, where interval and test agree at 5 %; higher is better unless the metric says otherwise."""
    if interval is None or interval[0] <= 0 <= interval[1] or p > ALPHA or direction == NEITHER:
        return None
    return "a" if (interval[0] > 0) != (direction == LOWER) else "b"


def _significant(p: float) -> float:
    """A p value, rounded."""
    return float(f"{p:.10g}")


def parse_weights(text: str) -> dict[str, float]:
    """`quality=0.4,latency=0.3,length=0.3` as numbers that add up to 1. Raises VlmkitError."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise VlmkitError(f"--weights: {part!r} is not NAME=NUMBER", WEIGHTS_EXAMPLE) from None
    if not set(weights) <= set(WEIGHTS) or not all(0 <= weight <= 1 for weight in weights.values()):
        raise VlmkitError(f"--weights: only these have shares: {', '.join(WEIGHTS)}", WEIGHTS_EXAMPLE)
    if abs(sum(weights.values()) - 1) > 1e-9:
        raise VlmkitError(f"--weights: they add up to {sum(weights.values()):g}", "make them add up to 1")
    return weights


def weighted_score(pair: Pair, weights: Mapping[str, float], seed: int) -> Record:
    """One score of each model from quality, latency and length, and A minus B.

    Each part is relative to the better of the two, so that this one has 1: quality is the first metric, latency the
    mean of a field in seconds, length the mean words of a prediction; less latency and fewer words are better.
    """
    first = select_metrics(pair.a, pair.a.options.metrics)[0]
    if "quality" in weights and first.of_counts is not None:
        raise VlmkitError("--weights: this metric cannot be quality", "choose another with --metric")
    metrics = [m for name in weights for m in (_part(pair.a, name, first.name), _part(pair.b, name, first.name))]
    columns = sum_by_unit(np.hstack([m.columns for m in metrics]), cluster_numbers(pair.a, np.arange(len(pair.a.ids))))
    sums = np.vstack([columns.sum(axis=0), resampled_sums(columns, seed=seed)])  # first the files themselves
    blocks = np.split(sums, np.cumsum([m.columns.shape[1] for m in metrics])[:-1], axis=1)
    means = np.stack([m.of_sums(block) for m, block in zip(metrics, blocks, strict=True)]).reshape(-1, 2, len(sums))
    totals, parts = np.zeros((2, len(sums))), {}
    for (name, weight), both in zip(weights.items(), means, strict=True):
        totals += weight * _relative(both, more_is_better=name == "quality")
        parts[name] = {"weight": weight, "a": rounded(both[0][0]), "b": rounded(both[1][0])}
    difference, draws = float(totals[0][0] - totals[1][0]), totals[0][1:] - totals[1][1:]
    n = len(pair.a.ids)
    head = "compare|weighted:" + ",".join(f"{name}={weight:g}" for name, weight in weights.items())
    signature = pair.a.signature(head, n, f"bootstrap{len(draws)}", seed)
    error, bounds, p = float(draws.std(ddof=1)), percentile_interval(draws), bootstrap_p(draws)
    record = result_record("weighted", difference, n, error, bounds, signature)
    record |= {"a": rounded(totals[0][0]), "b": rounded(totals[1][0]), "p": _significant(p), "test": "bootstrap"}
    return record | {"better": _better(HIGHER, record["ci95"], p), "parts": parts, "files": list(pair.files)}


def _part(scores: Scores, name: str, quality: str) -> Metric:
    """The metric behind one part of the weighted score."""
    if name == "quality":
        return next(metric for metric in scores.metrics if metric.name == quality)
    return mean_metric(name, name, scores.seconds if name == "latency" else [float(n) for n in scores.words])


def _relative(means: np.ndarray, *, more_is_better: bool) -> np.ndarray:
    """2 x R means -> 2 x R shares of the better of the two; 1 for both where both are 0."""
    best = means.max(axis=0) if more_is_better else means.min(axis=0)
    above, below = (means, best) if more_is_better else (best, means)
    return np.divide(above, below, out=np.ones_like(means), where=below != 0)


def changed_items(pair: Pair) -> list[Record]:
    """The items of both files side by side; `score` is A minus B, `flip` says which is right."""
    names = {(True, True): "both right", (True, False): "only A right", (False, True): "only B right"}
    records = []
    for a, b in zip(pair.a.details, pair.b.details, strict=True):
        record: Record = {name: a[name] for name in ("id", "image", "question", "category", "references") if name in a}
        for side, item in (("A", a), ("B", b)):
            record |= {f"{name} {side}": item[name] for name in ("prediction", "rule", "score") if name in item}
        record["score"] = rounded(a["score"] - b["score"])
        record["flip"] = names.get((a["score"] >= RIGHT, b["score"] >= RIGHT), "both wrong")
        record["files"] = list(pair.files)
        records.append(record)
    return records
