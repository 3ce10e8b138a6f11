"""Metrics as pure functions: numbers and strings in, numbers out; fractions throughout, CIDEr 0 to 10.

Nothing here opens a picture or loads a model. A case without a meaningful number raises `MetricError`, which is both a
VlmkitError and a ValueError. Only the tokenizer `ptb` needs an extra, `vlmkit[eval]`, and Java. vlmkit/eval/registry.py
says how a package adds a metric of its own to `vlmkit eval`.
"""

from vlmkit.metrics.answers import anls, pope, pope_label, relaxed_accuracy
from vlmkit.metrics.captions import bleu, cider, rouge_l
from vlmkit.metrics.ranking import recall_at_k
from vlmkit.metrics.stats import (
    MetricError,
    bootstrap_ci,
    clustered_stderr,
    mcnemar,
    paired_bootstrap,
    paired_permutation,
)
from vlmkit.metrics.vqa import vqa_accuracy, vqa_normalize

__all__ = [
    "MetricError", "anls", "bleu", "bootstrap_ci", "cider", "clustered_stderr", "mcnemar", "paired_bootstrap",
    "paired_permutation", "pope", "pope_label", "recall_at_k", "relaxed_accuracy", "rouge_l", "vqa_accuracy",
    "vqa_normalize",
]  # fmt: skip
