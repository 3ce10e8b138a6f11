"""eval choice: multiple choice, as in MMBench, MMMU and ScienceQA.

The options of a record are its columns A, B, C, …, a list or an object in `options` or `choices`, or lines of its
question such as "A. a cat"; the right one is a letter, an option's text, or its place in the list from 0. An answer
that names no option, or several, is unparsed and wrong. Questions without options are compared as `eval vqa` does.
Copies of a question with its options in other places (`g_index`, or MMBench's index modulo 1,000,000) are one item of
`circular_accuracy`, right where all of them are.
"""

from collections.abc import Sequence

from vlmkit.errors import VlmkitError
from vlmkit.eval.choices import right_option
from vlmkit.eval.predictions import Row
from vlmkit.eval.task import HIGHER, ItemScore, Metric, Scores, Task, mean_metric, score_each
from vlmkit.eval.tasks.vqa import EXACT_RULES, match_rule
from vlmkit.io.choices import options_of
from vlmkit.io.values import text_of
from vlmkit.metrics.choice import option_named

COPIES = 1_000_000  # MMBench numbers the copies of question 7 as 1000007, 2000007, …


def score_item(prediction: str, row: Row, variant: str) -> ItemScore:
    """Whether the answer names the right option; an open question is right as in `vqa`."""
    options = options_of(row.record, row.question)
    group = _group(row)
    if not options:
        rule = match_rule(prediction, row.references, "always")
        right = rule in EXACT_RULES
        return ItemScore((right, group), int(right), f"open question: {rule}", rule == "empty")
    wanted, named = right_option(row, options), option_named(prediction, options)
    if wanted is None:
        what = f"{row.id}: {' and '.join(row.references)} is not one of its options"
        raise VlmkitError(what, "give the letter of the right option")
    rule = "unparsed" if named is None else "right" if named == wanted else "wrong"
    confusion = None if named == wanted else (wanted, named or "")
    shown = {"options": options, "chosen": named, "right": wanted}
    return ItemScore((named == wanted, group), int(named == wanted), rule, named is None, None, shown, confusion)


def _group(row: Row) -> tuple[str, str]:
    """What all copies of a question share."""
    index = text_of(row.record.get("g_index")) or text_of(row.record.get("index")) or row.id
    return str(int(index) % COPIES) if index.isdecimal() else index, row.question


def summarize(scores: Scores, _: str, right: Sequence[bool], groups: Sequence[tuple[str, str]]) -> list[Metric]:
    """Accuracy over the rows; where questions come in copies, over the questions too, and copies are clusters."""
    metrics = [mean_metric("accuracy", "choice:accuracy", right)]
    members: dict[tuple[str, str], list[bool]] = {}
    for group, correct in zip(groups, right, strict=True):
        members.setdefault(group, []).append(correct)
    if len(members) < len(groups):
        first = {group: number for number, group in reversed(list(enumerate(groups)))}
        every = [float(all(members[g])) if first[g] == i else float("nan") for i, g in enumerate(groups)]
        metrics.append(mean_metric("circular_accuracy", "choice:circular", every))
        scores.clusters = scores.clusters or [index for index, _ in groups]
    return metrics


TASK = Task(
    score_each(score_item, summarize),
    {"accuracy": HIGHER, "circular_accuracy": HIGHER},
    references=("answers", "target"),
    reports_unparsed=True,
)
