"""eval anls: answers about documents; an empty answer is unparsed."""

from vlmkit.eval.predictions import Row
from vlmkit.eval.task import HIGHER, ItemScore, Task, score_each
from vlmkit.metrics.answers import ANLS_VARIANTS, anls


def score_item(prediction: str, row: Row, variant: str) -> ItemScore:
    """ANLS of one answer, the best over its references."""
    value = anls(prediction, row.references, variant)
    empty = not prediction.strip()
    rule = "empty" if empty else "similar" if value else "below 0.5"
    return ItemScore((value,), value, rule, empty, shown={"anls": value})


TASK = Task(score_each(score_item), {"anls": HIGHER}, variants=ANLS_VARIANTS, reports_unparsed=True)
