"""How well what `mini` talks with does on what was held out, and how often an answer of some probability is right:

    python -m vlmkit.recipes.mini.measure MODEL DATA

prints the figures of the card of MODEL, `mini` or a folder, and its calibration, on what vlmkit.recipes.mini.data
wrote.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.generate.pipeline import caption_sampling
from vlmkit.io.executor import ahead
from vlmkit.io.images import open_picture
from vlmkit.io.records import Record, batched
from vlmkit.io.sources import open_source
from vlmkit.metrics import bleu, cider, vqa_normalize
from vlmkit.models.chat.confidence import calibrated, log_odds
from vlmkit.models.chat.decoding import Generated
from vlmkit.models.chat.mini import UNSURE, MiniChat
from vlmkit.models.load import load_chat_model
from vlmkit.models.types import Hardware, Request, Sampling
from vlmkit.recipes.mini.data import rows
from vlmkit.train.data.mixture import share

TOGETHER = 32
QUESTIONS = {"easy_vqa": "easy-test", "daquar": "daquar-dev", "flickr": "flickr-dev-questions"}


class Judged(NamedTuple):
    """For each question whether the answer is right, its log probability, and whether calibration may see it."""

    right: np.ndarray
    log_probability: np.ndarray
    seen: np.ndarray


def measure(folder: Path, data: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """(figures, calibration): captions of Flickr8k dev (CIDEr, BLEU-4), as `vlmkit caption` makes them; answers to
    QUESTIONS, and `calibrated`'s arguments.

    Exact: equal to a reference after VQA's normalisation. Shuffled: each question with the picture of another one.
    Answered: of the questions that calibration did not see, those whose answer has a confidence of UNSURE or more;
    answered_exact: of these the ones that are right.
    """
    captioned = list(rows(data / "flickr-dev-captions.jsonl"))
    said = answers(folder, captioned, [""] * len(captioned), captions=True)
    references = [row["captions"] for row in captioned]
    figures: dict[str, Any] = {
        "captions": len(captioned),
        "cider": round(cider(said, references, tokenize="py")["corpus"], 4),
        "bleu4": round(bleu(said, references, tokenize="py")["corpus"][3], 4),
    }
    judged: dict[str, Judged] = {}
    for name, file in QUESTIONS.items():
        asked = list(rows(data / f"{file}.jsonl"))
        judged[name] = judge(folder, asked, asked)
        order = np.random.default_rng(0).permutation(len(asked))
        shuffled = judge(folder, asked, [asked[i] for i in order])
        figures[f"{name}_questions"] = len(asked)
        figures[f"{name}_exact"] = _share(judged[name].right)
        figures[f"{name}_shuffled"] = _share(shuffled.right)
    calibration = calibrate([*judged.values()])
    for name, (right, log_probability, seen) in judged.items():
        sure = np.array([calibrated(one, **calibration) >= UNSURE for one in log_probability], bool)[~seen]
        figures[f"{name}_answered"] = _share(sure)
        figures[f"{name}_answered_exact"] = _share(right[~seen][sure])
    return figures, calibration


def _share(true: np.ndarray) -> float | None:
    """The share of what is true; None of nothing."""
    return round(float(true.mean()), 4) if len(true) else None


def judge(folder: Path, asked: list[Record], shown: list[Record]) -> Judged:
    """The answers to the questions of `asked` about the pictures of `shown`."""
    model = _open(folder)
    said = list(_replies(model, shown, [row["question"] for row in asked], Sampling(8)))
    right = [
        vqa_normalize(model.text(reply)) in {vqa_normalize(each) for each in row["answers"]}
        for reply, row in zip(said, asked, strict=True)
    ]
    seen = [share(f"calibration {Path(row['image']).name}") >= 0.5 for row in asked]
    return Judged(np.array(right, bool), np.array([reply.log_probability for reply in said]), np.array(seen, bool))


def calibrate(sets: Sequence[Judged]) -> dict[str, float]:
    """The `bias` and `slope` of Platt scaling, with his targets, on the questions that it may see: each set counts
    alike, and those of which it may see nothing do not count.
    """
    sets = [one for one in sets if one.seen.any()]
    from sklearn.linear_model import LogisticRegression

    odds = np.concatenate([[*map(log_odds, one.log_probability[one.seen])] for one in sets])
    right = np.concatenate([one.right[one.seen] for one in sets])
    weights = np.concatenate([np.full(one.seen.sum(), len(right) / len(sets) / one.seen.sum()) for one in sets])
    targets = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    labels = np.repeat([True, False], len(right))
    shares = np.concatenate([weights * targets, weights * (1 - targets)])
    fitted = LogisticRegression(C=1e6).fit(np.tile(odds, 2)[:, None], labels, shares)
    return {"bias": round(float(fitted.intercept_[0]), 4), "slope": round(float(fitted.coef_[0, 0]), 4)}


def answers(folder: Path, shown: Sequence[Record], questions: list[str], captions: bool = False) -> list[str]:
    """What the packed model in `folder` says: short answers, or captions as `vlmkit caption` makes them."""
    model = _open(folder)
    sampling = caption_sampling(model, "normal", Sampling(1), None) if captions else Sampling(8)
    return [model.text(reply) for reply in _replies(model, shown, questions, sampling)]


def _open(folder: Path) -> MiniChat:
    model = load_chat_model(str(folder), Hardware())
    if not isinstance(model, MiniChat):
        raise VlmkitError(f"{folder} is not a model of this recipe", "name mini, or a folder that train_chat made")
    return model


def _replies(model: MiniChat, shown: Sequence[Record], questions: list[str], sampling: Sampling) -> Iterator[Generated]:
    opened = ahead(shown, lambda row: model.preprocess(open_picture(open_source(row["image"]), model.size)[0]), 2, 64)
    for some in batched(zip(opened, questions, strict=True), TOGETHER):
        for reply in model.replies([Request(question, [picture]) for picture, question in some], sampling):
            if not isinstance(reply, Generated):
                raise reply
            yield reply


def main() -> int:
    """The command line."""
    if len(sys.argv) != 3:
        sys.stderr.write("usage: python -m vlmkit.recipes.mini.measure MODEL DATA\n")
        return 2
    figures, calibration = measure(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write(json.dumps({"figures": figures, "confidence": calibration}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
