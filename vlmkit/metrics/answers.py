"""Short answers: ANLS for documents, relaxed accuracy for charts, yes and no for POPE."""

from collections.abc import Sequence

from vlmkit.metrics.stats import MetricError, check_variant

ANLS_VARIANTS = ("rrc", "paper")
ANLS_THRESHOLD = 0.5
NO_WORDS = {"No", "not", "no"}


def anls(prediction: str, references: Sequence[str], variant: str = "rrc") -> float:
    """Average normalised Levenshtein similarity of one answer, 0 to 1: the best over the references.

    The distance is between stripped, lower-cased strings with single spaces. `rrc` (the Robust Reading Competition's
    script) divides by the longer raw length and counts similarities below 0.5 as 0; `paper` (Biten et al. 2019,
    equation 1) divides by the longer normalised length and counts 0.5 as 0, too.
    """
    from rapidfuzz.distance import Levenshtein

    check_variant(variant, ANLS_VARIANTS)
    if not references:
        raise MetricError("ANLS without references", "give one or more")
    answer = _squeezed(prediction)
    best = 0.0
    for reference in references:
        target = _squeezed(reference)
        if variant == "rrc":
            longer = max(len(prediction.upper()), len(reference.upper()))  # upper: sic, it lengthens ß
        else:
            longer = max(len(answer), len(target))
        distance = Levenshtein.distance(answer, target) / longer if longer else 0.0
        best = max(best, 1 - distance if variant == "rrc" or distance < ANLS_THRESHOLD else 0.0)
    return best if best >= ANLS_THRESHOLD else 0.0


def _squeezed(text: str) -> str:
    return " ".join(text.lower().split())


def chart_number(text: str) -> float | None:
    """`text` as pix2struct reads numbers: a trailing % divides by 100; None for everything that is no number."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_accuracy(prediction: str, target: str, tolerance: float = 0.05) -> bool:
    """Whether numbers agree within `tolerance` of the target, other strings without regard to case.

    ChartQA's measure as pix2struct (metrics.py, relaxed_correctness) computes it: a target of 0 is compared as text.
    """
    found, wanted = chart_number(prediction), chart_number(target)
    if found is None or not wanted:
        return prediction.lower() == target.lower()
    return abs(found - wanted) / abs(wanted) <= tolerance


def pope_label(answer: str) -> str:
    """`no` if the first sentence holds the word No, no or not, else `yes`: POPE's own rule (RUCAIBox/POPE)."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "yes" if NO_WORDS.isdisjoint(words) else "no"


def pope(labels: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """accuracy, precision, recall, f1 of `yes`, and the share of `yes`, of raw answers against yes/no labels.

    A ratio without cases is 0. Raises MetricError where the lengths differ or a label is neither yes nor no.
    """
    if not labels or len(labels) != len(predictions):
        raise MetricError(f"{len(labels)} labels for {len(predictions)} answers", "give one label an answer")
    truths = [yes_or_no(label) for label in labels]
    counts = {(t, p): 0 for t in (True, False) for p in (True, False)}
    for truth, prediction in zip(truths, predictions, strict=True):
        counts[truth, pope_label(prediction) == "yes"] += 1
    tp, fn, fp, tn = counts[True, True], counts[True, False], counts[False, True], counts[False, False]
    n = len(truths)
    return {
        "accuracy": (tp + tn) / n,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": (tp + fp) / n,
    }


def yes_or_no(label: str) -> bool:
    """Whether a label says yes. Raises MetricError for anything but yes and no."""
    word = label.strip().lower()
    if word not in ("yes", "no"):
        raise MetricError(f"the label {label!r} is neither yes nor no", "name the field of the labels")
    return word == "yes"


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
