"""Short answers: ANLS for documents, relaxed accuracy for charts, yes and no for POPE."""

from collections.abc import Sequence
from typing import Literal

from vlmkit.metrics.stats import MetricError, check_variant

ANLS_VARIANTS = ("rrc", "paper")
ANLS_THRESHOLD = 0.5
NO_WORDS = {"No", "not", "no"}


def anls(prediction: str, references: Sequence[str], variant: str = "rrc") -> float:
    """Average normalised Levenshtein similarity of one answer, 0 to 1: the best over the references.

    The distance is between stripped, lower-cased strings with single spaces. `rrc` (the Robust Reading Competition's
    script) divides by the longer raw length and counts similarities below 0.5 as 0; `paper` (Biten et al. 2019,
    equation 1) divides by the longer normalised length and counts 0.5 as 0, too. Raises MetricError without references.
    """
    from rapidfuzz.distance import Levenshtein

    check_variant(variant, ANLS_VARIANTS)
    if not references:
        raise MetricError("ANLS without references", "give one or more")
    answer, *targets = (" ".join(text.lower().split()) for text in (prediction, *references))
    best = 0.0
    for reference, target in zip(references, targets, strict=True):
        if variant == "rrc":
            longer = max(len(prediction.upper()), len(reference.upper()))  # upper: sic, it lengthens ß
        else:
            longer = max(len(answer), len(target))
        distance = Levenshtein.distance(answer, target) / longer if longer else 0.0
        best = max(best, 1 - distance if variant == "rrc" or distance < ANLS_THRESHOLD else 0.0)
    return best if best >= ANLS_THRESHOLD else 0.0


def parse_chart_number(text: str) -> float | None:
    """`text` as pix2struct reads numbers: a trailing % divides by 100; None for other texts."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_accuracy(prediction: str, target: str, tolerance: float = 0.05) -> bool:
    """Whether numbers agree within the share `tolerance` of the target, other strings without regard to case.

    ChartQA's measure as pix2struct (metrics.py, relaxed_correctness) computes it: a target of 0 is compared as text.
    """
    found, wanted = parse_chart_number(prediction), parse_chart_number(target)
    if found is None or not wanted:
        return prediction.lower() == target.lower()
    return abs(found - wanted) / abs(wanted) <= tolerance


def pope_label(answer: str) -> Literal["yes", "no"]:
    """`no` if the first sentence has the word No, no or not, else `yes`: POPE's own rule (RUCAIBox/POPE)."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "yes" if NO_WORDS.isdisjoint(words) else "no"


def pope(labels: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """accuracy, precision, recall, f1 of `yes`, and yes_ratio (0 to 1) of raw answers against yes/no labels.

    A ratio without cases is 0. Raises MetricError where the lengths differ or a label is neither yes nor no.
    """
    if not labels or len(labels) != len(predictions):
        raise MetricError(f"{len(labels)} labels for {len(predictions)} answers", "give one label an answer")
    wanted = [is_yes(label) for label in labels]
    given = [pope_label(prediction) == "yes" for prediction in predictions]
    both = sum(w and g for w, g in zip(wanted, given, strict=True))
    return {
        "accuracy": sum(w == g for w, g in zip(wanted, given, strict=True)) / len(labels),
        "precision": both / (sum(given) or 1),
        "recall": both / (sum(wanted) or 1),
        "f1": 2 * both / (sum(given) + sum(wanted) or 1),
        "yes_ratio": sum(given) / len(labels),
    }


def is_yes(label: str) -> bool:
    """Whether a label is yes. Raises MetricError for anything but yes and no."""
    word = label.strip().lower()
    if word not in ("yes", "no"):
        raise MetricError(f"the label {label!r} is neither yes nor no", "name the field of the labels")
    return word == "yes"
