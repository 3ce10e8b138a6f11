"""Preferences for `train prefer` out of a model's own captions: the one closest to what people wrote, and the farthest.

After Rennie and others (2017), Self-critical sequence training, but with pairs: close by CIDEr-D, whose rarity of words
is that in all captions given.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vlmkit.io.executor import ahead
from vlmkit.io.images import open_picture
from vlmkit.io.records import Record, batched
from vlmkit.io.sources import open_source
from vlmkit.metrics import cider
from vlmkit.models.load import load_chat_model
from vlmkit.models.types import Answer, Hardware, Request, RequestError, Sampling

DRAWN, TEMPERATURE, TOP_P = 8, 0.8, 0.95  # captions a picture
TOKENS = 40
TOGETHER = 16  # pictures
MARGIN = 0.2  # of CIDEr-D, between the two of a pair


def caption_pairs(folder: Path, captioned: Sequence[Record], seed: int) -> Iterator[Record]:
    """{id, image, chosen, rejected} for each of `captioned`, {id, image, captions}, where they differ."""
    said = [list(dict.fromkeys(some)) for some in _drawn(folder, captioned, seed)]
    references = [row["captions"] for row in captioned]
    scores = [
        cider([some[min(n, len(some) - 1)] for some in said], references, tokenize="py")["items"]
        for n in range(max(map(len, said)))
    ]
    for row, some, clip_rerank_weight in zip(captioned, said, zip(*scores, strict=True), strict=True):
        order = sorted(range(len(some)), key=clip_rerank_weight.__getitem__)
        worst, best = order[0], order[-1]
        if clip_rerank_weight[best] - clip_rerank_weight[worst] >= MARGIN:
            pair = {"chosen": some[best], "rejected": some[worst]}
            yield {"id": row["id"], "image": row["image"], **pair}


def _drawn(folder: Path, captioned: Sequence[Record], seed: int) -> Iterator[list[str]]:
    """What the model says of each picture: its likeliest caption, and DRAWN others."""
    model = load_chat_model(str(folder), Hardware())
    likeliest = Sampling(TOKENS, beams=3, length_penalty=0.0)
    by_chance = Sampling(TOKENS, temperature=TEMPERATURE, top_p=TOP_P, seed=seed)
    opened = ahead(
        captioned, lambda row: model.preprocess(open_picture(open_source(row["image"]), model.size)[0]), 2, 64
    )
    number = 0
    for pictures in batched(opened, TOGETHER):
        requests = [Request("", [picture], number=number + n) for picture in pictures for n in range(DRAWN)]
        answers = [*model.answer(requests[::DRAWN], likeliest), *model.answer(requests, by_chance)]
        if failed := next((answer for answer in answers if isinstance(answer, RequestError)), None):
            raise failed
        said = [answer.text for answer in answers if isinstance(answer, Answer)]
        first, others = said[: len(pictures)], said[len(pictures) :]
        for place, text in enumerate(first):
            yield [text, *others[place * DRAWN : (place + 1) * DRAWN]]
        number += len(requests)
