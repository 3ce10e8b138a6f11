"""eval classify: acc@1, acc@5 where every record lists five labels, and the mean over the classes of their recall."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmkit.eval.predictions import Row
from vlmkit.eval.task import HIGHER, ItemScore, Metric, Scores, Task, counted_metric, mean_metric, score_each
from vlmkit.io.values import text_of

if TYPE_CHECKING:
    import numpy as np

TOP = 5  # of acc@5


def score_item(prediction: str, row: Row, _: str) -> ItemScore:
    """Whether one label is right, and whether the right one is among the first five."""
    ranked = row.record.get("labels")
    entries = ranked if isinstance(ranked, list) else []
    labels = [text_of(entry["label"]) for entry in entries if isinstance(entry, dict) and "label" in entry]
    labels = labels or [prediction]
    right = prediction in row.references
    among_top = not set(row.references).isdisjoint(labels[:TOP])
    truth = row.references[0]
    return ItemScore(
        (right, among_top, len(labels), truth),
        int(right),
        "right" if right else "among five" if among_top else "wrong",
        not prediction.strip(),
        confusion=None if right else (truth, prediction),
    )


def summarize(
    scores: Scores,
    _: str,
    right: Sequence[bool],
    among_top: Sequence[bool],
    listed: Sequence[int],
    truths: Sequence[str],
) -> list[Metric]:
    """The metrics of all items; the signature gets the number of classes."""
    import numpy as np

    classes, numbers = np.unique(np.asarray(truths, str), return_inverse=True)
    scores.signature_fields["classes"] = len(classes)
    metrics = [mean_metric("acc@1", "classify:acc@1", right)]
    if min(listed) >= TOP:
        metrics.append(mean_metric("acc@5", "classify:acc@5", among_top))
    return [*metrics, _mean_per_class(np.array(right, np.float64), numbers)]


def _mean_per_class(right: "np.ndarray", classes: "np.ndarray") -> Metric:
    """The mean recall of the classes; a resample counts those that it has. `right` and `classes` have n numbers."""
    import numpy as np

    order = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))

    def of_counts(counts: "np.ndarray") -> "np.ndarray":
        items = np.add.reduceat(counts[:, order], starts, axis=1)  # (R, classes)
        hits = np.add.reduceat((counts * right)[:, order], starts, axis=1)
        drawn = items > 0
        return np.divide(hits, items, out=np.zeros_like(hits), where=drawn).sum(axis=1) / drawn.sum(axis=1)

    return counted_metric("mean_per_class", "classify:mean_per_class", np.ones(len(right)), of_counts)


TASK = Task(
    score_each(score_item, summarize),
    {"acc@1": HIGHER, "acc@5": HIGHER, "mean_per_class": HIGHER},
    predictions=("predicted", "label"),  # beside `predicted` the label is the data's own
    references=("target", "answers", "label"),
    reports_unparsed=True,
)
