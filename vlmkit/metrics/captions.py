"""Caption metrics, equal to coco-caption's own code (tylin/coco-caption@3a9afb2).

`hypotheses` is a list of strings, `references` a list of lists of strings; `tokenize` says how both become tokens:
`ptb` (Java), `py`, or None for strings whose tokens are separated by single spaces already.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmkit.metrics.stats import MetricError
from vlmkit.metrics.tokens import tokenized

if TYPE_CHECKING:
    import numpy as np

LONGEST = 4  # n-grams of 1 to 4 words
BETA = 1.2  # of ROUGE-L: recall counts more
SIGMA = 6.0  # of CIDEr-D: words of difference in length
SMALL, TINY = 1e-9, 1e-15  # of the official BLEU: no division by zero, no logarithm of zero

Ngrams = Counter[tuple[str, ...]]


def _prepared(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: str | None
) -> tuple[list[str], list[list[str]]]:
    if not hypotheses or len(hypotheses) != len(references):
        raise MetricError(f"{len(references)} sets of references for {len(hypotheses)} captions", "pair them")
    if not all(references):
        raise MetricError("a caption has no references", "leave it out, or give it one")
    return tokenized(hypotheses, references, tokenize)


def _ngrams(text: str) -> Ngrams:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1))


def bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: str | None = "ptb"
) -> dict[str, Any]:
    """BLEU-1 to 4: `{"corpus": [b1, b2, b3, b4], "items": [[b1, b2, b3, b4], …]}`, counts pooled over the corpus."""
    columns = bleu_columns(*_prepared(hypotheses, references, tokenize))
    return {"corpus": bleu_of_sums(columns.sum(axis=0)[None])[0].tolist(), "items": bleu_of_sums(columns).tolist()}


def bleu_columns(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> "np.ndarray":
    """What BLEU sums up, n x 10: words, words of the closest reference, n-grams made (4), n-grams right (4)."""
    import numpy as np

    rows = []
    for hypothesis, group in zip(hypotheses, references, strict=True):
        most: Ngrams = Counter()
        for reference in group:
            most |= _ngrams(reference)
        length = len(hypothesis.split())
        closest = min((abs(words - length), words) for words in (len(r.split()) for r in group))[1]
        right = [0] * LONGEST
        for ngram, count in _ngrams(hypothesis).items():
            right[len(ngram) - 1] += min(most[ngram], count)
        rows.append([length, closest, *(max(0, length - n) for n in range(LONGEST)), *right])
    return np.array(rows, np.float64)


def bleu_of_sums(sums: "np.ndarray") -> "np.ndarray":
    """R x 10 sums of `bleu_columns` -> R x 4."""
    import numpy as np

    made, right = sums[:, 2:6], sums[:, 6:10]
    products = np.cumprod((right + TINY) / (made + SMALL), axis=1)
    ratio = (sums[:, :1] + TINY) / (sums[:, 1:2] + SMALL)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    return products ** (1 / np.arange(1, LONGEST + 1)) * brevity


def rouge_l(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: str | None = "ptb"
) -> dict[str, Any]:
    """ROUGE-L: `{"corpus": float, "items": [float, …]}`; best precision and best recall are taken separately."""
    items = [_rouge(h, group) for h, group in zip(*_prepared(hypotheses, references, tokenize), strict=True)]
    return {"corpus": math.fsum(items) / len(items), "items": items}


def _rouge(hypothesis: str, references: Sequence[str]) -> float:
    from rapidfuzz.distance import LCSseq

    words = hypothesis.split(" ")
    pairs = [(LCSseq.similarity(words, other), len(other)) for other in (r.split(" ") for r in references)]
    precision = max(common for common, _ in pairs) / len(words)
    recall = max(common / length for common, length in pairs)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def cider(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: str | None = "ptb"
) -> dict[str, Any]:
    """CIDEr-D, 0 to 10: `{"corpus": float, "items": [float, …]}`; the rarity of n-grams is that in these references.

    One image alone gives 0 whatever its caption, as each of its n-grams is in every image.
    """
    texts, groups = _prepared(hypotheses, references, tokenize)
    counted = [[_ngrams(reference) for reference in group] for group in groups]
    images: Counter[tuple[str, ...]] = Counter()
    for group in counted:
        images.update(set().union(*group))
    rarity = {ngram: math.log(len(texts) / n) for ngram, n in images.items()}
    unseen = math.log(len(texts))
    items = []
    for text, group in zip(texts, counted, strict=True):
        weighed = _weighed(_ngrams(text), rarity, unseen)
        items.append(math.fsum(_similar(weighed, _weighed(r, rarity, unseen)) for r in group) / len(group) * 10)
    return {"corpus": math.fsum(items) / len(items), "items": items}


Weighed = tuple[list[dict[tuple[str, ...], float]], list[float], int]


def _weighed(counts: Ngrams, rarity: dict[tuple[str, ...], float], unseen: float) -> Weighed:
    """TF-IDF weights by length of the n-gram, their norms, and the length of the text (in bigrams, sic)."""
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
    length = 0
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen)
        length += count * (len(ngram) == 2)
    return weights, [math.sqrt(sum(w * w for w in part.values())) for part in weights], length


def _similar(hypothesis: Weighed, reference: Weighed) -> float:
    """The mean over n of the clipped cosine, lowered for a difference in length."""
    total = 0.0
    for ours, theirs, our_norm, their_norm in zip(
        hypothesis[0], reference[0], hypothesis[1], reference[1], strict=True
    ):
        if our_norm and their_norm:
            common = sum(min(w, theirs[g]) * theirs[g] for g, w in ours.items() if g in theirs)
            total += common / (our_norm * their_norm)
    return total / LONGEST * math.exp(-((hypothesis[2] - reference[2]) ** 2) / (2 * SIGMA**2))
