"""eval chartqa: answers about charts; an answer that is not a number where the reference is one is unparsed."""

from vlmkit.eval.predictions import Row
from vlmkit.eval.task import HIGHER, ItemScore, Task, score_each
from vlmkit.metrics.answers import parse_chart_number, relaxed_accuracy


def score_item(prediction: str, row: Row, _: str) -> ItemScore:
    """Relaxed accuracy of one answer, the best over its references."""
    numeric = all(parse_chart_number(reference) is not None for reference in row.references)
    right = any(relaxed_accuracy(prediction, reference) for reference in row.references)
    unparsed = not prediction.strip() or (numeric and parse_chart_number(prediction) is None)
    agrees, differs = "within 5 %" if numeric else "same text", "not a number" if unparsed else "different"
    return ItemScore(
        (right,), int(right), agrees if right else differs, unparsed, shown={"relaxed_accuracy": int(right)}
    )


TASK = Task(score_each(score_item), {"relaxed_accuracy": HIGHER}, variants=("pix2struct",), reports_unparsed=True)
