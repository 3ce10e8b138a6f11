"""How well what `mini` talks with does on what was held out, with the right pictures and with shuffled ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.generate.pipeline import caption_sampling
from vlmkit.io.executor import ahead
from vlmkit.io.images import open_picture
from vlmkit.io.records import Record, batched
from vlmkit.io.sources import open_source
from vlmkit.metrics import bleu, cider, vqa_normalize
from vlmkit.models.load import load_chat_model
from vlmkit.models.types import Answer, Hardware, Request, Sampling
from vlmkit.recipes.mini.data import rows

TOGETHER = 32


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """Captions of Flickr8k dev (CIDEr, BLEU-4), as `vlmkit caption` makes them; answers to easy-VQA's test and DAQUAR's
    dev questions.

    Exact: equal to a reference after VQA's normalisation. Shuffled: each question with the picture of another one.
    """
    captioned = list(rows(data / "flickr-dev-captions.jsonl"))
    said = answers(folder, captioned, [""] * len(captioned), captions=True)
    references = [row["captions"] for row in captioned]
    found: dict[str, Any] = {
        "captions": len(captioned),
        "cider": round(cider(said, references, tokenize="py")["corpus"], 4),
        "bleu4": round(bleu(said, references, tokenize="py")["corpus"][3], 4),
    }
    for name, file in (("easy_vqa", "easy-test"), ("daquar", "daquar-dev")):
        asked = list(rows(data / f"{file}.jsonl"))
        found[f"{name}_questions"] = len(asked)
        found[f"{name}_exact"] = _exact(folder, asked, asked)
        order = np.random.default_rng(0).permutation(len(asked))
        found[f"{name}_shuffled"] = _exact(folder, asked, [asked[i] for i in order])
    return found


def _exact(folder: Path, asked: list[Record], shown: list[Record]) -> float:
    said = answers(folder, shown, [row["question"] for row in asked])
    right = [
        vqa_normalize(answer) in {vqa_normalize(each) for each in row["answers"]}
        for answer, row in zip(said, asked, strict=True)
    ]
    return round(float(np.mean(right)), 4)


def answers(folder: Path, shown: Sequence[Record], questions: list[str], captions: bool = False) -> list[str]:
    """What the packed model in `folder` says: short answers, or captions as `vlmkit caption` makes them."""
    model = load_chat_model(str(folder), Hardware())
    sampling = caption_sampling(model, "normal", Sampling(1), None) if captions else Sampling(8)
    opened = ahead(shown, lambda row: model.preprocess(open_picture(open_source(row["image"]), model.size)[0]), 2, 64)
    pairs = zip(opened, questions, strict=True)
    said: list[str] = []
    for some in batched(pairs, TOGETHER):
        for answer in model.answer([Request(question, [picture]) for picture, question in some], sampling):
            if not isinstance(answer, Answer):
                raise answer
            said.append(answer.text)
    return said
