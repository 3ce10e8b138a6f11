"""eval pope, anls, chartqa, classify: short answers with one rule each."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vlmkit.eval.predictions import Row, text_of
from vlmkit.eval.results import Measure, OfSums, Scores, mean_measure, ratio_of_sums
from vlmkit.eval.task import Gathered, Options, flags
from vlmkit.metrics.answers import ANLS_VARIANTS, anls, chart_number, pope_label, relaxed_accuracy, yes_or_no

if TYPE_CHECKING:
    import numpy as np

PREDICTION, REFERENCES = "answer", ("answers", "target")
POPE_REFERENCES = ("label", "answers", "target")
POPE_VARIANTS = ("official", "strict")
CLASSIFY_PREDICTION, CLASSIFY_REFERENCES = "label", ("target", "answers")
FIRST = 5  # of acc@5


def score_anls(rows: Iterable[Row], options: Options) -> Scores:
    """ANLS, the best over the references; an empty answer is unparsed."""
    variant = options.pick_variant(ANLS_VARIANTS)
    gathered = Gathered(options)
    values, unparsed = [], []
    for row in gathered.rows(rows):
        prediction = text_of(row.prediction) or ""
        values.append(anls(prediction, row.references, variant))
        unparsed.append(not prediction.strip())
        gathered.keep(
            row,
            {
                "prediction": prediction,
                "references": row.references,
                "anls": values[-1],
                "score": values[-1],
                "rule": "empty" if unparsed[-1] else "similar" if values[-1] else "below 0.5",
            },
        )
    return _scores("anls", [mean_measure("anls", f"anls:{variant}", values)], gathered, unparsed)


def score_chartqa(rows: Iterable[Row], options: Options) -> Scores:
    """Relaxed accuracy; unparsed is an answer that is no number where a number is wanted."""
    options.pick_variant(("pix2struct",))
    gathered = Gathered(options)
    values, unparsed = [], []
    for row in gathered.rows(rows):
        prediction = text_of(row.prediction) or ""
        numeric = all(chart_number(reference) is not None for reference in row.references)
        values.append(any(relaxed_accuracy(prediction, reference) for reference in row.references))
        unparsed.append(not prediction.strip() or (numeric and chart_number(prediction) is None))
        gathered.keep(
            row,
            {
                "prediction": prediction,
                "references": row.references,
                "relaxed_accuracy": int(values[-1]),
                "score": int(values[-1]),
                "rule": _chart_rule(unparsed[-1], values[-1], numeric),
            },
        )
    measure = mean_measure("relaxed_accuracy", "relaxed_accuracy:pix2struct", values)
    return _scores("chartqa", [measure], gathered, unparsed)


def _chart_rule(unparsed: bool, right: bool, numeric: bool) -> str:
    if not right:
        return "not a number" if unparsed else "different"
    return "within 5 %" if numeric else "same text"


def score_pope(rows: Iterable[Row], options: Options) -> Scores:
    """Yes and no. Unparsed are answers that POPE's rule calls yes though their first sentence says neither.

    Variant `official` keeps that rule; `strict` counts an unparsed answer as wrong and as no yes.
    """
    import numpy as np

    variant = options.pick_variant(POPE_VARIANTS)
    gathered = Gathered(options)
    cells, unparsed = [], []
    for row in gathered.rows(rows):
        prediction = text_of(row.prediction)
        prediction = prediction if prediction is not None else _yes_no_of(row.prediction)
        truth = yes_or_no(row.references[0])
        said = pope_label(prediction)
        mute = said == "yes" and re.search(r"\byes\b", prediction.split(".")[0].lower()) is None
        yes = said == "yes" and not (mute and variant == "strict")
        right = yes == truth and not (mute and variant == "strict")
        unparsed.append(mute)
        cells.append((truth and yes, truth, right, yes))
        gathered.keep(
            row,
            {
                "prediction": prediction,
                "references": row.references,
                "compared": {"prediction": said, "references": ["yes" if truth else "no"]},
                "score": int(right),
                "rule": "yes by default" if mute else f"says {said}",
            },
        )
    columns = np.array(cells, np.float64).reshape(-1, 4)  # yes rightly, yes wanted, right, yes

    def figure(name: str, chosen: list[int], of: OfSums) -> Measure:
        return Measure(name, f"pope:{variant}", columns[:, chosen], of, np.ones(len(columns)))

    measures = [
        mean_measure("accuracy", f"pope:{variant}", columns[:, 2]),
        figure("precision", [0, 3], ratio_of_sums),
        figure("recall", [0, 1], ratio_of_sums),
        figure("f1", [0, 1, 3], _f1_of_sums),
        mean_measure("yes_ratio", f"pope:{variant}", columns[:, 3]),
    ]
    return _scores("pope", measures, gathered, unparsed)


def _yes_no_of(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else ""


def _f1_of_sums(sums: "np.ndarray") -> "np.ndarray":
    """R x 3 sums of (true yes, wanted yes, given yes) -> R."""
    import numpy as np

    return ratio_of_sums(np.column_stack([2 * sums[:, 0], sums[:, 1] + sums[:, 2]]))


def score_classify(rows: Iterable[Row], options: Options) -> Scores:
    """acc@1, acc@5 where every record lists five labels, and the mean over the classes of their recall."""
    import numpy as np

    gathered = Gathered(options)
    truths, first, five, listed, unparsed, confusions = [], [], [], [], [], []
    for row in gathered.rows(rows):
        given = text_of(row.prediction) or ""
        names = _names(row.record.get("labels")) or [given]
        truth = set(row.references)
        truths.append(row.references[0])
        first.append(given in truth)
        five.append(not truth.isdisjoint(names[:FIRST]))
        listed.append(len(names))
        unparsed.append(not given.strip())
        if given not in truth:
            confusions.append((row.references[0], given))
        gathered.keep(
            row,
            {
                "prediction": given,
                "references": row.references,
                "score": int(first[-1]),
                "rule": "right" if first[-1] else "among five" if five[-1] else "wrong",
            },
        )
    measures = [mean_measure("acc@1", "classify:acc@1", first)]
    if listed and min(listed) >= FIRST:
        measures.append(mean_measure("acc@5", "classify:acc@5", five))
    classes, where = np.unique(np.asarray(truths, str), return_inverse=True)
    if truths:
        measures.append(_mean_per_class(np.array(first, np.float64), where))
    scores = _scores("classify", measures, gathered, unparsed)
    scores.confusions = confusions
    scores.marks["classes"] = len(classes)
    return scores


def _names(ranked: object) -> list[str]:
    """The labels of a field that `vlmkit classify` wrote; none where it is anything else."""
    entries = ranked if isinstance(ranked, list) else []
    return [str(entry["label"]) for entry in entries if isinstance(entry, dict) and "label" in entry]


def _mean_per_class(right: "np.ndarray", classes: "np.ndarray") -> Measure:
    """The mean recall of the classes; a resample counts those that it holds. `right` and `classes` have n numbers."""
    import numpy as np

    order = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))

    def of_counts(counts: "np.ndarray") -> "np.ndarray":
        items = np.add.reduceat(counts[:, order], starts, axis=1)  # (R, classes)
        hits = np.add.reduceat((counts * right)[:, order], starts, axis=1)
        held = items > 0
        return np.divide(hits, items, out=np.zeros_like(hits), where=held).sum(axis=1) / held.sum(axis=1)

    n = len(right)
    return Measure(
        "mean_per_class", "classify:mean_per_class", np.zeros((n, 1)), ratio_of_sums, np.ones(n), of_counts=of_counts
    )


def _scores(task: str, measures: list[Measure], gathered: Gathered, unparsed: list[bool]) -> Scores:
    return Scores(
        task,
        measures=measures,
        marks={"refs": gathered.refs(), "skipped": 0},
        unparsed=flags(unparsed),
        tells_unparsed=True,
        **gathered.shared(),
    )
