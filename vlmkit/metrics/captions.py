"""Caption metrics, equal to coco-caption's own code (tylin/coco-caption@3a9afb2).

`hypotheses` is a list of n strings, `references` a list of n lists of strings. `tokenize` says how both become tokens:
`ptb` (Java and the extra `eval`), `py`, None for strings whose tokens are separated by single spaces already; `auto`,
the default, is `ptb` where it can be run, else `py`, whose scores must not be compared with those of `ptb`. All raise
MetricError where the lengths differ or a caption has no references.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmkit.metrics.stats import MetricError
from vlmkit.metrics.tokens import tokenized

if TYPE_CHECKING:
    import numpy as np

MAX_N = 4  # n-grams of 1 to 4 words
BETA = 1.2  # of ROUGE-L: recall counts more
SIGMA = 6.0  # of CIDEr-D: words of difference in length
SMALL, TINY = 1e-9, 1e-15  # of the official BLEU: no division by zero, no logarithm of zero

Ngram = tuple[str, ...]
Texts = Sequence[str]
References = Sequence[Sequence[str]]


def bleu(hypotheses: Texts, references: References, tokenize: str | None = "auto") -> dict[str, Any]:
    """BLEU-1 to 4, 0 to 1: `{"corpus": [b1, b2, b3, b4], "items": [[b1, b2, b3, b4], …]}`; the corpus pools counts."""
    columns = bleu_columns(*_prepare(hypotheses, references, tokenize))
    return {"corpus": bleu_of_sums(columns.sum(axis=0)[None])[0].tolist(), "items": bleu_of_sums(columns).tolist()}


def rouge_l(hypotheses: Texts, references: References, tokenize: str | None = "auto") -> dict[str, Any]:
    """ROUGE-L, 0 to 1: `{"corpus": float, "items": [float, …]}`; best precision and recall are taken separately."""
    return _mean([_rouge(h, group) for h, group in zip(*_prepare(hypotheses, references, tokenize), strict=True)])


def cider(hypotheses: Texts, references: References, tokenize: str | None = "auto") -> dict[str, Any]:
    """CIDEr-D, 0 to 10: `{"corpus": float, "items": [float, …]}`; the rarity of n-grams is that in these references.

    One image alone gives 0 whatever its caption, as each of its n-grams is in every image.
    """
    texts, groups = _prepare(hypotheses, references, tokenize)
    counts = [[_ngrams(reference) for reference in group] for group in groups]
    images = Counter(ngram for group in counts for ngram in set().union(*group))
    rarity = {ngram: math.log(len(texts) / n) for ngram, n in images.items()}
    unseen = math.log(len(texts))
    items = []
    for text, group in zip(texts, counts, strict=True):
        vector = _tf_idf(_ngrams(text), rarity, unseen)
        similarities = [_cider_similarity(vector, _tf_idf(reference, rarity, unseen)) for reference in group]
        items.append(math.fsum(similarities) / len(group) * 10)
    return _mean(items)


def _prepare(hypotheses: Texts, references: References, tokenize: str | None) -> tuple[list[str], list[list[str]]]:
    if not hypotheses or len(hypotheses) != len(references):
        raise MetricError(f"{len(references)} sets of references for {len(hypotheses)} captions", "pair them")
    if not all(references):
        raise MetricError("a caption has no references", "leave it out, or give it one")
    return tokenized(hypotheses, references, tokenize)


def _mean(items: list[float]) -> dict[str, Any]:
    return {"corpus": math.fsum(items) / len(items), "items": items}


def _ngrams(text: str) -> Counter[Ngram]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def bleu_columns(hypotheses: Texts, references: References) -> "np.ndarray":
    """What BLEU sums up, n x 10: words, words of the closest reference, n-grams made (4), n-grams right (4)."""
    import numpy as np

    rows = []
    for hypothesis, group in zip(hypotheses, references, strict=True):
        most: Counter[Ngram] = Counter()
        for reference in group:
            most |= _ngrams(reference)
        length = len(hypothesis.split())
        closest = min((abs(words - length), words) for words in (len(r.split()) for r in group))[1]
        right = [0] * MAX_N
        for ngram, count in _ngrams(hypothesis).items():
            right[len(ngram) - 1] += min(most[ngram], count)
        rows.append([length, closest, *(max(0, length - n) for n in range(MAX_N)), *right])
    return np.array(rows, np.float64)


def bleu_of_sums(sums: "np.ndarray") -> "np.ndarray":
    """R x 10 sums of `bleu_columns` -> R x 4."""
    import numpy as np

    made, right = sums[:, 2:6], sums[:, 6:10]
    products = np.cumprod((right + TINY) / (made + SMALL), axis=1)
    ratio = (sums[:, :1] + TINY) / (sums[:, 1:2] + SMALL)
    return products ** (1 / np.arange(1, MAX_N + 1)) * np.exp(np.minimum(0, 1 - 1 / ratio))


def _rouge(hypothesis: str, references: Sequence[str]) -> float:
    from rapidfuzz.distance import LCSseq

    words = hypothesis.split(" ")
    pairs = [(LCSseq.similarity(words, other), len(other)) for other in (r.split(" ") for r in references)]
    precision = max(common for common, _ in pairs) / len(words)
    recall = max(common / length for common, length in pairs)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


TfIdf = tuple[list[dict[Ngram, float]], list[float], int]


def _tf_idf(counts: Counter[Ngram], rarity: dict[Ngram, float], unseen: float) -> TfIdf:
    """Weights by length of the n-gram, their norms, and the length of the text (in bigrams, sic)."""
    weights: list[dict[Ngram, float]] = [{} for _ in range(MAX_N)]
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen)
    norms = [math.sqrt(sum(w * w for w in part.values())) for part in weights]
    return weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _cider_similarity(hypothesis: TfIdf, reference: TfIdf) -> float:
    """The mean over n of the clipped cosine, lowered for a difference in length."""
    total = 0.0
    for n in range(MAX_N):
        ours, theirs, norms = hypothesis[0][n], reference[0][n], hypothesis[1][n] * reference[1][n]
        if norms:
            total += sum(min(w, theirs[g]) * theirs[g] for g, w in ours.items() if g in theirs) / norms
    return total / MAX_N * math.exp(-((hypothesis[2] - reference[2]) ** 2) / (2 * SIGMA**2))
