r"""VQA accuracy and its normalisation, as GT-Vision-Lab/VQA (vqaEval.py, commit a013f004) computes them.

Variants: `official` normalises only where the reference answers are not all identical, `always` as most other harnesses
do, `textvqa` as MMF's processor for TextVQA, which first drops commas and question marks and sets off `'s`.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from vlmkit.metrics.stats import MetricError, check_variant

VARIANTS = ("official", "always", "textvqa")
MATCHES_FOR_FULL_SCORE = 3

ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBER_WORDS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Sic: `(?!<=\d)` was meant to be `(?<!\d)`, so that "3." loses its full stop.
_FULL_STOP = r"(?!<=\d)(\.)(?!\d)"
_MOST_FULL_STOPS = 32  # sic: re.UNICODE, passed where `count` belongs


@cache
def contractions() -> dict[str, str]:
    """The official table, its slips included: words are looked up in lower case, so keys with a capital never match."""
    return json.loads(Path(__file__).with_name("vqa_contractions.json").read_text("utf-8"))


def vqa_normalize(answer: str, variant: str = "official") -> str:
    """`answer` in lower case without punctuation, articles and number words, its contractions with apostrophes.

    Raises MetricError for an unknown variant.
    """
    check_variant(variant, VARIANTS)
    return _normalize(answer, variant == "textvqa")


def vqa_accuracy(prediction: str, answers: Sequence[str], variant: str = "official") -> float:
    """Soft accuracy, 0 to 1: the mean over the references of min(1, matches among the other references / 3).

    With ten references 1, 2, 3, 4 matches give 0.3, 0.6, 0.9, 1. Raises MetricError with fewer than two references,
    for which the formula has no meaning.
    """
    if len(answers) < 2:
        raise MetricError("VQA accuracy needs two references or more", "use exact accuracy for one reference")
    return soft_accuracy(*comparable(prediction, answers, variant))


def soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """The formula alone, on `comparable` strings: of n references, m of them matches, m see m - 1 others."""
    n, m = len(references), Counter(references)[prediction]
    left_out = m * min(1.0, (m - 1) / MATCHES_FOR_FULL_SCORE) if m else 0.0
    return (left_out + (n - m) * min(1.0, m / MATCHES_FOR_FULL_SCORE)) / n


def comparable(prediction: str, answers: Sequence[str], variant: str = "official") -> tuple[str, list[str]]:
    """The strings that are compared for equality: the prediction's and the references'."""
    check_variant(variant, VARIANTS)
    references = [_one_line(answer) for answer in answers]
    if variant == "official" and len(set(references)) <= 1:
        return _one_line(prediction), references
    textvqa = variant == "textvqa"
    return _normalize(prediction, textvqa), [_normalize(answer, textvqa) for answer in answers]


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def _normalize(answer: str, textvqa: bool) -> str:
    if textvqa:
        answer = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = _remove_punctuation(_one_line(answer))
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(contractions().get(word, word) for word in words if word not in ARTICLES)


def _remove_punctuation(text: str) -> str:
    out, in_number = text, re.search(r"\d,\d", text) is not None
    for mark in PUNCTUATION:
        if mark in text:
            drop = in_number or mark + " " in text or " " + mark in text
            out = out.replace(mark, "" if drop else " ")
    return re.sub(_FULL_STOP, "", out, count=_MOST_FULL_STOPS)
