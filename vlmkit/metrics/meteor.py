"""METEOR 1.5 (Denkowski and Lavie 2014).

Its Java program, which pycocoevalcap brings, counts matches; the score is computed from the counts here, so that
resamples of a corpus need no Java.
"""

import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.metrics.tokens import java_files

if TYPE_CHECKING:
    import numpy as np

JAR = "meteor-1.5.jar"
# Its parameters for English, task `rank`.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # exact, stem, synonym, paraphrase
COLUMNS = 23
CHUNKS = 20


def meteor_columns(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> "np.ndarray":
    """What METEOR counts, n x 23, of captions whose tokens are separated by spaces.

    Words and function words of both sides, matches by stage (content and function words of both sides, 16 columns),
    chunks, matched words of both sides. Starting Java takes some 9 s. Raises VlmkitError without it.
    """
    import numpy as np

    captions = (text.replace("|||", "").replace("  ", " ") for text in hypotheses)
    lines = [" ||| ".join(["SCORE", *r, text]) + "\n" for text, r in zip(captions, references, strict=True)]
    command = ["java", "-jar", "-Xmx2G", JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    data = "".join(lines).encode(errors="replace")
    done = subprocess.run(command, input=data, capture_output=True, cwd=java_files() / "meteor")
    answers = done.stdout.splitlines()
    if done.returncode or len(answers) != len(lines):
        raise VlmkitError("METEOR of pycocoevalcap failed", "leave it out with --metric")
    return np.array([[float(number) for number in line.split()] for line in answers]).reshape(-1, COLUMNS)


def meteor_summable(columns: "np.ndarray") -> "np.ndarray":
    """`columns` as a corpus sums them: a caption that equals its reference adds no chunk, so no penalty."""
    summable = columns.copy()
    summable[_perfect(columns), CHUNKS] = 0
    return summable


def _perfect(columns: "np.ndarray") -> "np.ndarray":
    chunks, ours, theirs = columns[:, CHUNKS:].T
    return (chunks <= 1) & (ours == columns[:, 0]) & (theirs == columns[:, 1])


def meteor_of_sums(sums: "np.ndarray") -> "np.ndarray":
    """R x 23 (sums of) columns -> R scores, 0 to 1."""
    import numpy as np

    stages = sums[:, 4:20].reshape(-1, 4, 2, 2)  # (R, stage, content or function, our or their side)
    matched = np.einsum("rskw,s,k->rw", stages, STAGE_WEIGHTS, (DELTA, 1 - DELTA))
    total = DELTA * (sums[:, :2] - sums[:, 2:4]) + (1 - DELTA) * sums[:, 2:4]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.nan_to_num(matched / total).T
        mean = np.nan_to_num(precision * recall / (ALPHA * precision + (1 - ALPHA) * recall))
        chunks, ours, theirs = sums[:, CHUNKS:].T
        gaps = np.where(_perfect(sums), 0, np.nan_to_num(chunks / ((ours + theirs) / 2)))
    return mean * (1 - GAMMA * gaps**BETA)
