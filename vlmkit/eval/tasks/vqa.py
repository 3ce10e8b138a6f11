"""eval vqa: answers to questions about pictures."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vlmkit.eval.predictions import Row, text_of
from vlmkit.eval.results import Measure, Scores, mean_measure
from vlmkit.eval.task import Gathered, Options, flags
from vlmkit.metrics.vqa import VARIANTS, compared, soft_accuracy, vqa_normalize

PREDICTION, REFERENCES = "answer", ("answers", "target")
NAN = float("nan")


class Match(NamedTuple):
    """How an answer agrees with its references; `rule` says by what."""

    exact: bool
    relaxed: bool
    rule: str

    @property
    def confidence(self) -> float:
        return (self.exact + self.relaxed) / 2  # 1 exact, 0.5 relaxed, 0 neither


def match(prediction: str, references: Sequence[str], variant: str) -> Match:
    """Exact: equal to a reference once both are normalised. Relaxed: one holds the other's words, or exact."""
    if not prediction.strip():
        return Match(False, False, "empty")
    if prediction in references:
        return Match(True, True, "identical")
    said = vqa_normalize(prediction, variant)
    wanted = {vqa_normalize(reference, variant) for reference in references} - {""}
    if said in wanted:
        return Match(True, True, "normalized")
    if said and any(f" {reference} " in f" {said} " for reference in wanted):
        return Match(False, True, "holds a reference")
    if said and any(f" {said} " in f" {reference} " for reference in wanted):
        return Match(False, True, "held by a reference")
    return Match(False, False, "none")


def vqa(rows: Iterable[Row], options: Options) -> Scores:
    """Soft accuracy for items with two references or more; exact and relaxed accuracy for all."""
    variant = options.pick_variant(VARIANTS)
    gathered = Gathered(options)
    soft, exact, relaxed, confidence, unparsed = [], [], [], [], []
    confusions: list[tuple[str, str]] = []
    for row in gathered.rows(rows):
        prediction = text_of(row.prediction) or ""
        found = match(prediction, row.references, variant)
        strings = compared(prediction, row.references, variant)
        soft.append(soft_accuracy(*strings) if len(row.references) > 1 else NAN)
        exact.append(found.exact)
        relaxed.append(found.relaxed)
        confidence.append(found.confidence)
        unparsed.append(found.rule == "empty")
        if not found.exact:
            usual = max(strings[1], key=strings[1].count)
            confusions.append((usual, strings[0]))
        if options.details:
            own = {"vqa_accuracy": soft[-1]} if len(row.references) > 1 else {}
            gathered.keep(
                row,
                {
                    "prediction": prediction,
                    "references": row.references,
                    "compared": {"prediction": strings[0], "references": sorted(set(strings[1]))},
                    **own,
                    "exact": int(found.exact),
                    "relaxed": int(found.relaxed),
                    "confidence": found.confidence,
                    "score": soft[-1] if own else found.confidence,
                    "rule": found.rule,
                },
            )
    several = any(value == value for value in soft)
    measures: list[Measure] = [mean_measure("vqa_accuracy", f"vqa:{variant}", soft)] if several else []
    measures += [
        mean_measure("exact", f"exact:{variant}", exact),
        mean_measure("relaxed", f"relaxed:{variant}", relaxed),
    ]
    if several:
        measures.append(mean_measure("confidence", f"confidence:{variant}", confidence))
    marks: dict[str, object] = {"refs": gathered.refs(), "skipped": 0}
    return Scores(
        "vqa", measures=measures, marks=marks, unparsed=flags(unparsed), confusions=confusions, **gathered.shared()
    )
