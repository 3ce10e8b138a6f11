"""eval pope: is the object there? Answers say yes or no.

Unparsed are answers that POPE's rule calls yes though their first sentence says neither. The variant `official` keeps
that rule; `strict` counts an unparsed answer as wrong and as no yes.
"""

import re
from typing import Any

from vlmkit.eval.predictions import Row
from vlmkit.eval.task import HIGHER, NEITHER, ItemScore, Metric, Scores, Task, mean_metric, ratio_metric, score_each
from vlmkit.metrics.answers import is_yes, pope_label


def score_item(prediction: str, row: Row, variant: str) -> ItemScore:
    """Whether one answer says what its label says."""
    if isinstance(row.prediction, bool):
        prediction = "yes" if row.prediction else "no"
    wanted = is_yes(row.references[0])
    label = pope_label(prediction)
    unparsed = label == "yes" and re.search(r"\byes\b", prediction.split(".")[0].lower()) is None
    rejected = unparsed and variant == "strict"
    yes = label == "yes" and not rejected
    right = yes == wanted and not rejected
    rule = "yes by default" if unparsed else f"says {label}"
    compared = label, ["yes" if wanted else "no"]
    return ItemScore((right, wanted, yes), int(right), rule, unparsed, compared, {"prediction": prediction})


def summarize(_: Scores, variant: str, *columns: Any) -> list[Metric]:
    """Accuracy, and precision, recall and F1 of yes."""
    import numpy as np

    right, wanted, yes = np.array(columns)
    head = f"pope:{variant}"
    return [
        mean_metric("accuracy", head, right),
        ratio_metric("precision", head, wanted & yes, yes),
        ratio_metric("recall", head, wanted & yes, wanted),
        ratio_metric("f1", head, 2 * (wanted & yes), wanted * 1 + yes),
        mean_metric("yes_ratio", head, yes),
    ]


TASK = Task(
    score_each(score_item, summarize),
    {"accuracy": HIGHER, "precision": HIGHER, "recall": HIGHER, "f1": HIGHER, "yes_ratio": NEITHER},
    references=("label", "answers", "target"),
    variants=("official", "strict"),
    reports_unparsed=True,
)
