"""eval compare: is A better than B, and how surely? Both are scored on the same items; figures are A minus B."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.eval.predictions import Row, Source, field, identity, is_lmms_sample, number_of, read_records, told
from vlmkit.eval.registry import evaluate
from vlmkit.eval.results import (
    Measure,
    Scores,
    by_unit,
    chosen,
    cluster_numbers,
    counted,
    groups,
    mean_measure,
    rounded,
)
from vlmkit.eval.task import Gathered, Options, flags
from vlmkit.eval.tasks.caption import BLEU
from vlmkit.io.records import Record
from vlmkit.metrics.stats import (
    RESAMPLES,
    as_far,
    both_tails,
    clustered_stderr,
    holm,
    interval,
    mcnemar,
    resampled,
    standard_error,
    swapped,
)

if TYPE_CHECKING:
    import numpy as np

# The task of a metric, by its name or the end of it.
METRICS = {
    "vqa": ("vqa_accuracy", "exact", "relaxed", "confidence"),
    "caption": (*BLEU, "cider", "rouge_l", "meteor", "clipscore", "refclipscore", "length", "repeated"),
    "classify": ("acc@1", "acc@5", "mean_per_class"),
    "pope": ("accuracy", "precision", "recall", "f1", "yes_ratio"),
    "anls": ("anls",),
    "chartqa": ("relaxed_accuracy",),
}
LOWER_IS_BETTER = ("median_rank", "mean_rank", "ties")
NO_DIRECTION = ("length", "repeated", "yes_ratio")
ALPHA = 0.05
RIGHT = 0.5  # a score from which an item counts as right
SOFT = ("vqa_accuracy", "anls")
WEIGHTS = ("quality", "latency", "length")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files' scores of the same items in the same order."""

    a: Scores
    b: Scores


def task_of(source: Source, metrics: tuple[str, ...]) -> str:
    """The task that two files are compared in: the metric's, or the one that the first record's fields fit.

    `field` where a metric is no task's but a field with numbers.
    """
    for name in metrics:
        if name.startswith(("text_to_image_", "image_to_text_")):
            return "retrieval"
        for task, known in METRICS.items():
            if name in known:
                return task
    first = next(read_records(source), None)
    if first is None:
        return "vqa"  # no items, so no task either
    if metrics and all(isinstance(field(first, name), int | float) for name in metrics):
        return "field"
    if "caption" in first:
        return "caption"
    if "labels" in first:
        return "classify"
    if "answer" in first or source.is_table() or is_lmms_sample(first):
        return "vqa"
    if "embedding" in first or "captions" in first:
        return "retrieval"
    raise VlmkitError(f"{source.name}: no task fits its fields", "name one with --task, or a metric with --metric")


def scored(task: str, a: Source, b: Source, options: Options) -> Pair:
    """Both files' scores, joined on the ids. Raises VlmkitError for ids or references that are not the same."""
    left, right = (_score(task, source, options) for source in (a, b))
    place = {key: i for i, key in enumerate(right.ids)}
    for scores, other, name in ((left, right, b.name), (right, left, a.name)):
        absent = sorted(set(scores.ids) - set(other.ids))
        if absent:
            raise VlmkitError(f"missing in {name}: {told(absent)}", "compare predictions for the same items")
    order = [place[key] for key in left.ids]
    pairs = zip(left.ids, left.targets, order, strict=True)
    changed = [key for key, target, i in pairs if target != right.targets[i]]
    if changed:
        raise VlmkitError(f"other references in {b.name}: {told(changed)}", "score both against the same references")
    return Pair(left, _ordered(right, order))


def _score(task: str, source: Source, options: Options) -> Scores:
    return _fields(source, options) if task == "field" else evaluate(task, source, options)


def _fields(source: Source, options: Options) -> Scores:
    """Means of fields with numbers, as in files that --items wrote."""
    gathered = Gathered(options)
    rows = (
        Row(identity(record, options.names, number), record, None, [], "")
        for number, record in enumerate(read_records(source), 1)
    )
    values = [[number_of(row.record, name, row.id) for name in options.metrics] for row in gathered.rows(rows)]
    columns = zip(*values, strict=True) if values else [[] for _ in options.metrics]
    measures = [
        mean_measure(name, f"mean:{name}", list(column)) for name, column in zip(options.metrics, columns, strict=True)
    ]
    marks: dict[str, object] = {"skipped": 0, "sha": source.sha()}
    unparsed = flags([False] * len(values))
    return Scores("field", measures=measures, marks=marks, unparsed=unparsed, **gathered.shared())


def _ordered(scores: Scores, order: list[int]) -> Scores:
    measures = [_reordered(measure, order) for measure in scores.measures if measure.has_interval]
    return replace(
        scores,
        ids=[scores.ids[i] for i in order],
        measures=measures,
        words=[scores.words[i] for i in order],
        seconds=[scores.seconds[i] for i in order] if scores.seconds else [],
        details=[scores.details[i] for i in order] if scores.details else [],
    )


def _reordered(measure: Measure, order: list[int]) -> Measure:
    import numpy as np

    of_counts = measure.of_counts
    back = np.argsort(order)
    return replace(
        measure,
        columns=measure.columns[order],
        weights=measure.weights[order],
        values=None if measure.values is None else measure.values[order],
        of_counts=None if of_counts is None else lambda counts: of_counts(counts[:, back]),
    )


def differences(pair: Pair, options: Options, seed: int) -> Iterator[Record]:
    """Each metric's A minus B, over all items, then by category with p corrected for the number of categories."""
    others = {measure.name: measure for measure in pair.b.measures}
    wanted = [m for m in chosen(pair.a, options.metrics) if m.name in others]
    if not pair.a.ids:
        return
    records: list[Record] = []
    for category, items in groups(pair.a):
        for measure in wanted:
            record = _difference(pair, measure, others[measure.name], items, seed)
            records.append(record if category is None else record | {"category": category})
    for measure in wanted:
        tested = [r for r in records if r["metric"] == measure.name and "category" in r]
        for record, p in zip(tested, holm([r["p"] for r in tested]), strict=True):
            record["p_holm"] = significant(p)
    yield from records


def _difference(pair: Pair, a: Measure, b: Measure, items: "np.ndarray", seed: int) -> Record:
    import numpy as np

    units = cluster_numbers(pair.a, items)
    values = a.at(items), b.at(items)
    observed = values[0] - values[1]
    ours, theirs = by_unit(a.columns[items], units), by_unit(b.columns[items], units)
    if a.of_counts is None:
        width = a.columns.shape[1]
        sums = resampled(np.hstack([ours, theirs]), RESAMPLES, seed)
        draws = a.of(sums[:, :width]) - b.of(sums[:, width:])
        moved = swapped(ours - theirs, RESAMPLES, seed)
        p = as_far(a.of(ours.sum(axis=0) - moved) - b.of(theirs.sum(axis=0) + moved), observed)
        test = "permutation"
    else:
        draws = counted(a, items, units, seed) - counted(b, items, units, seed)
        p, test = both_tails(draws), "bootstrap"
    draws = draws[np.isfinite(draws)]
    bounds = None
    if len(ours) > 1 and len(draws) > 1:
        low, high = interval(draws)
        bounds = min(low, observed), max(high, observed)
    n = int(a.weights[items].sum())
    marks = pair.a.marks | {"sha": f"{pair.a.marks['sha']}-{pair.b.marks['sha']}"}
    head = replace(pair.a, marks=marks).signature(
        f"compare|{a.head}", n, f"bootstrap{len(draws)}" if bounds else "none", seed
    )
    record = {
        "metric": a.name,
        "value": rounded(observed),
        "n": n,
        "stderr": rounded(_stderr(pair.a, a, b, items, draws)),
        "ci95": None if bounds is None else [rounded(bound) for bound in bounds],
        "signature": head,
        "a": rounded(values[0]),
        "b": rounded(values[1]),
        "p": significant(p),
        "test": test,
        "better": None if bounds is None else _better(a.name, *bounds, p),
    }
    return record | _mcnemar(a, b, items, units)


def _stderr(scores: Scores, a: Measure, b: Measure, items: "np.ndarray", draws: "np.ndarray") -> float | None:
    if len(items) < 2:
        return None
    if not (a.is_plain() and b.is_plain()):
        return float(draws.std(ddof=1))
    assert a.values is not None and b.values is not None
    kept = items[(a.weights[items] == 1) & (b.weights[items] == 1)]
    if len(kept) < 2:
        return None
    apart = a.values[kept] - b.values[kept]
    if scores.clusters is None:
        return standard_error(apart)
    return clustered_stderr(apart, [scores.clusters[i] for i in kept])


def _better(name: str, low: float, high: float, p: float) -> str | None:
    """Which file is better, where the whole interval and the test at 5 % say so."""
    if low <= 0 <= high or p > ALPHA or name in NO_DIRECTION:
        return None
    return "a" if (low > 0) != name.endswith(LOWER_IS_BETTER) else "b"


def significant(p: float) -> float:
    """A p value without the digits that say nothing."""
    return float(f"{p:.10g}")


def _mcnemar(a: Measure, b: Measure, items: "np.ndarray", units: "np.ndarray | None") -> Record:
    """McNemar's exact test where items are right or wrong (soft accuracy: at 0.5 and more) and not in clusters."""
    import numpy as np

    if units is not None or not (a.is_plain() and b.is_plain()):
        return {}
    assert a.values is not None and b.values is not None
    kept = items[(a.weights[items] == 1) & (b.weights[items] == 1)]
    ours, theirs = a.values[kept], b.values[kept]
    if a.name not in SOFT and not np.isin([ours, theirs], (0, 1)).all():
        return {}
    only_a, only_b = int(((ours >= RIGHT) & (theirs < RIGHT)).sum()), int(((ours < RIGHT) & (theirs >= RIGHT)).sum())
    return {"mcnemar": significant(mcnemar(ours, theirs)), "only_a": only_a, "only_b": only_b}


def parse_weights(text: str) -> dict[str, float]:
    """`quality=0.4,latency=0.3,length=0.3` as numbers that add up to 1. Raises VlmkitError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise VlmkitError(f"--weights: {part!r} is no NAME=NUMBER", "quality=0.4,latency=0.3,length=0.3") from None
    if not set(found) <= set(WEIGHTS) or not all(0 <= w <= 1 for w in found.values()):
        raise VlmkitError(f"--weights: not shares of {', '.join(WEIGHTS)}", "quality=0.4,latency=0.3,length=0.3")
    if abs(sum(found.values()) - 1) > 1e-9:
        raise VlmkitError(f"--weights: they add up to {sum(found.values()):g}", "make them add up to 1")
    return found


def weighted(pair: Pair, options: Options, weights: Mapping[str, float], seed: int) -> Record:
    """One score of each model from quality, latency and length, and A minus B.

    Each part is relative to the better of the two, so that this one has 1: quality is the first metric, latency the
    mean of a field in seconds, length the mean words of a prediction; less latency and fewer words are better.
    """
    import numpy as np

    parts: dict[str, tuple[Measure, Measure]] = {}
    for name in weights:
        if name == "quality":
            first = chosen(pair.a, options.metrics)[0]
            parts[name] = first, next(m for m in pair.b.measures if m.name == first.name)
        else:
            columns = [s.seconds if name == "latency" else [float(w) for w in s.words] for s in (pair.a, pair.b)]
            parts[name] = mean_measure(name, name, columns[0]), mean_measure(name, name, columns[1])
    if any(m.of_counts is not None for m in parts.get("quality", ())):
        raise VlmkitError("--weights: this metric cannot be quality", "choose another with --metric")
    units = cluster_numbers(pair.a, np.arange(len(pair.a.ids)))
    stacked = by_unit(np.hstack([m.columns for both in parts.values() for m in both]), units)
    sums = np.vstack([stacked.sum(axis=0)[None], resampled(stacked, RESAMPLES, seed)])  # first the files themselves
    totals, shown, start = np.zeros((2, len(sums))), {}, 0
    for name, both in parts.items():
        means = []
        for measure in both:
            means.append(measure.of(sums[:, start : start + measure.columns.shape[1]]))
            start += measure.columns.shape[1]
        terms = _relative(np.stack(means), more_is_better=name == "quality")
        totals += weights[name] * terms
        shown[name] = {"weight": weights[name], "a": rounded(means[0][0]), "b": rounded(means[1][0])}
    apart = totals[0] - totals[1]
    low, high = interval(apart[1:])
    p = both_tails(apart[1:])
    n = len(pair.a.ids)
    marks = pair.a.marks | {"sha": f"{pair.a.marks['sha']}-{pair.b.marks['sha']}"}
    head = "compare|weighted:" + ",".join(f"{name}={weight:g}" for name, weight in weights.items())
    low, high = min(low, apart[0]), max(high, apart[0])
    return {
        "metric": "weighted",
        "value": rounded(float(apart[0])),
        "n": n,
        "stderr": rounded(float(apart[1:].std(ddof=1))),
        "ci95": [rounded(float(low)), rounded(float(high))],
        "signature": replace(pair.a, marks=marks).signature(head, n, f"bootstrap{len(apart) - 1}", seed),
        "a": rounded(float(totals[0][0])),
        "b": rounded(float(totals[1][0])),
        "p": significant(p),
        "test": "bootstrap",
        "better": _better("weighted", low, high, p),
        "parts": shown,
    }


def _relative(means: "np.ndarray", *, more_is_better: bool) -> "np.ndarray":
    """2 x R means -> 2 x R shares of the better of the two; 1 for both where both are 0."""
    import numpy as np

    best = means.max(axis=0) if more_is_better else means.min(axis=0)
    above, below = (means, best) if more_is_better else (best, means)
    return np.divide(above, below, out=np.ones_like(means), where=below != 0)


def flips(pair: Pair) -> list[Record]:
    """The items of both files side by side; `score` is A minus B."""
    names = {(True, True): "both right", (True, False): "only A right", (False, True): "only B right"}
    found = []
    for a, b in zip(pair.a.details, pair.b.details, strict=True):
        shown: Record = {name: a[name] for name in ("id", "image", "question", "category", "references") if name in a}
        for side, item in (("A", a), ("B", b)):
            shown |= {f"{name} {side}": item[name] for name in ("prediction", "rule", "score") if name in item}
        shown["score"] = rounded(a["score"] - b["score"])
        shown["flip"] = names.get((a["score"] >= RIGHT, b["score"] >= RIGHT), "both wrong")
        found.append(shown)
    return found
