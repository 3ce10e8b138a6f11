"""eval vqa: answers to questions about pictures.

Soft accuracy and confidence for items with two references or more; exact and relaxed accuracy for all.
"""

from collections.abc import Sequence
from dataclasses import replace

from vlmkit.eval.predictions import Row
from vlmkit.eval.task import HIGHER, ItemScore, Metric, Scores, Task, score_each, summarize_means
from vlmkit.metrics.vqa import VARIANTS, comparable, soft_accuracy, vqa_normalize

EXACT_RULES = ("identical", "normalized")
RELAXED_RULES = (*EXACT_RULES, "holds a reference", "held by a reference")


def match_rule(prediction: str, references: Sequence[str], variant: str) -> str:
    """The rule by which an answer matches its references, both normalised: one of those above, `empty` or `none`."""
    if not prediction.strip():
        return "empty"
    if prediction in references:
        return "identical"
    said = vqa_normalize(prediction, variant)
    wanted = {vqa_normalize(reference, variant) for reference in references} - {""}
    if said in wanted:
        return "normalized"
    if said and any(f" {reference} " in f" {said} " for reference in wanted):
        return "holds a reference"
    if said and any(f" {said} " in f" {reference} " for reference in wanted):
        return "held by a reference"
    return "none"


def score_item(prediction: str, row: Row, variant: str) -> ItemScore:
    """Soft accuracy (NaN for one reference), exact and relaxed match, confidence (1 exact, 0.5 relaxed, 0 neither)."""
    rule = match_rule(prediction, row.references, variant)
    exact, relaxed = rule in EXACT_RULES, rule in RELAXED_RULES
    confidence = (exact + relaxed) / 2
    said, wanted = comparable(prediction, row.references, variant)
    shown: dict[str, object] = {"exact": int(exact), "relaxed": int(relaxed), "confidence": confidence}
    soft, score = float("nan"), confidence
    if len(row.references) > 1:
        soft = score = soft_accuracy(said, wanted)
        shown = {"vqa_accuracy": soft} | shown
    confusion = None if exact else (max(wanted, key=wanted.count), said)
    columns = soft, exact, relaxed, confidence
    return ItemScore(columns, score, rule, rule == "empty", (said, wanted), shown, confusion)


def summarize(scores: Scores, variant: str, *columns: Sequence[float]) -> list[Metric]:
    """The means over the items; without an item with several references, exact and relaxed accuracy alone."""
    soft, exact, relaxed, confidence = summarize_means(scores, variant, *columns)
    if not soft.weights.any():
        return [exact, relaxed]
    return [replace(soft, head=f"vqa:{variant}"), exact, relaxed, confidence]


TASK = Task(
    score_each(score_item, summarize),
    dict.fromkeys(("vqa_accuracy", "exact", "relaxed", "confidence"), HIGHER),
    variants=VARIANTS,
)
