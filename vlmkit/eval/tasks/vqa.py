"""eval vqa: answers to questions about pictures.

Soft accuracy and confidence for items with two references or more; exact and relaxed accuracy for all. An answer that
names the right one of an item's options matches exactly; `eval choice` is for files of such items.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from vlmkit.eval.choices import right_option
from vlmkit.eval.predictions import Row
from vlmkit.eval.task import HIGHER, ItemScore, Metric, Scores, Task, score_each, summarize_means
from vlmkit.io.choices import options_of
from vlmkit.metrics.choice import option_named
from vlmkit.metrics.vqa import VARIANTS, comparable, soft_accuracy, vqa_normalize

EXACT_RULES = ("identical", "normalized", "option")
RELAXED_RULES = (*EXACT_RULES, "holds a reference", "held by a reference")
RULES = (*RELAXED_RULES, "none")  # the best first


def match_rule(prediction: str, references: Sequence[str], variant: str) -> str:
    """The rule by which an answer matches its references: one of those above, `empty` or `none`.

    Both are normalised; references of a single letter, as those of options, are also sought among the words as they
    are: normalising takes the option A for an article.
    """
    if not prediction.strip():
        return "empty"
    if prediction in references:
        return "identical"
    wanted = {vqa_normalize(reference, variant) for reference in references} - {""}
    rules = [_compare(vqa_normalize(prediction, variant), wanted)]
    if letters := {letter for text in references if len(letter := _words(text)) == 1 and letter.isalpha()}:
        rules.append(_compare(_words(prediction), letters))
    return min(rules, key=RULES.index)


def _compare(said: str, wanted: set[str]) -> str:
    if said in wanted:
        return "normalized"
    if said and any(f" {reference} " in f" {said} " for reference in wanted):
        return "holds a reference"
    if said and any(f" {said} " in f" {reference} " for reference in wanted):
        return "held by a reference"
    return "none"


def _words(text: str) -> str:
    """The words of `text` without punctuation; a single letter in upper case."""
    words = " ".join(re.findall(r"\w+", text))
    return words.upper() if len(words) == 1 else words


def score_item(prediction: str, row: Row, variant: str) -> ItemScore:
    """Soft accuracy (NaN for one reference), exact and relaxed match, confidence (1 exact, 0.5 relaxed, 0 neither)."""
    rule = match_rule(prediction, row.references, variant)
    unparsed = rule == "empty"
    options = {} if rule in EXACT_RULES else options_of(row.record, row.question)
    if options and (wanted_option := right_option(row, options)):
        named = option_named(prediction, options)
        rule, unparsed = "option" if named == wanted_option else "none", named is None
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
    return ItemScore(columns, score, rule, unparsed, (said, wanted), shown, confusion)


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
