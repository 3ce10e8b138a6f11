"""The part of a constitution's gate that looks at pictures: heads of `vlmkit train head`, before the model is asked."""

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vlmkit.generate.questions import ChatSample
from vlmkit.io.executor import Stage
from vlmkit.io.images import open_picture
from vlmkit.io.records import Failed, name_of
from vlmkit.io.sources import PictureError, open_source
from vlmkit.models.head import CLASSES, NUMBER, Head, known_labels, open_head
from vlmkit.models.load import load_embedder
from vlmkit.models.types import Answer, Embedder, Hardware, Reply

if TYPE_CHECKING:
    import numpy as np

LIMIT = 0.5  # from which on a picture is declined
KEYS = {"head", "labels", "above", "below"}


@dataclass(frozen=True, slots=True)
class HeadRule:
    """A picture is declined for `reason` where the head in `folder` says so.

    That is where the probability of any of `labels`, or the number that the head tells, is at least `above`, or at most
    `below`.
    """

    reason: str
    folder: str
    labels: tuple[str, ...] = ()
    above: float | None = None
    below: float | None = None

    def score(self, head: Head, vectors: "np.ndarray") -> "np.ndarray":
        """What the head says of N vectors (N, D): (N,)"""
        found = head.predict(vectors)
        if head.config.target == NUMBER:
            return found[:, 0]
        columns = found[:, [head.config.labels.index(label) for label in self.labels]]
        return columns.max(1) if head.config.target == CLASSES else columns.sum(1)

    def declines(self, score: float) -> bool:
        return (self.above is not None and score >= self.above) or (self.below is not None and score <= self.below)


def read_rule(reason: str, table: dict[str, Any], folder: str) -> HeadRule:
    """The rule of an entry of [gate]; a relative `head` starts from `folder`.

    Raises ValueError, and VlmkitError where the head cannot be opened.
    """
    if unknown := table.keys() - KEYS:
        raise ValueError(f"gate {reason} has the unknown key {min(unknown)}")
    if not isinstance(table.get("head"), str):
        raise ValueError(f"gate {reason} is neither a question nor a table with a head")
    path = os.path.join(folder, os.path.expanduser(table["head"]))
    head, labels = open_head(path), table.get("labels", [])
    limits = {name: table[name] for name in ("above", "below") if name in table}
    if any(isinstance(limit, bool) or not isinstance(limit, int | float) for limit in limits.values()):
        raise ValueError(f"above and below of gate {reason} are not numbers")
    if head.config.target == NUMBER:
        if labels or not limits:
            raise ValueError(f"gate {reason} is of a number: it takes above or below, and no labels")
        return HeadRule(reason, path, (), **limits)
    if not isinstance(labels, list) or not labels or (odd := [*known_labels(head, labels)]):
        known = ", ".join(head.config.labels)
        raise ValueError(
            f"gate {reason} needs labels of its head, which are {known}" + (f", not {odd[0]}" if labels else "")
        )
    return HeadRule(reason, path, tuple(labels), **(limits or {"above": LIMIT}))


@dataclass
class Gate(Stage):
    """ChatSample -> ChatSample, `declined` where one of its pictures is, for the first rule that says so."""

    rules: list[HeadRule]
    hardware: Hardware
    _heads: list[tuple[HeadRule, Head, Embedder]] = field(default_factory=list)

    def load(self) -> None:
        models: dict[str, Embedder] = {}
        for rule in self.rules:
            head = open_head(rule.folder)
            name = name_of(head.config.embedder)
            if name not in models:
                models[name] = load_embedder(name, self.hardware)
            head.check(models[name])
            self._heads.append((rule, head, models[name]))

    def __call__(self, sample: ChatSample) -> ChatSample | Failed:
        known: dict[str, np.ndarray] = {}
        for rule, head, model in self._heads if sample.pictures else ():
            try:
                if model.identity not in known:
                    known[model.identity] = _vectors(sample.pictures, model)
            except PictureError as error:
                return Failed.of(sample.record, error)
            scores = [score for score in rule.score(head, known[model.identity]).tolist() if rule.declines(score)]
            if scores:
                answer = Answer(f"I would rather not answer this ({rule.reason}).", "stop", 0)
                reply = Reply(answer, {"declined": rule.reason, "declined_score": round(scores[0], 6)})
                return replace(sample, declined=reply)
        return sample


def _vectors(pictures: list[Any], model: Embedder) -> "np.ndarray":
    """(N, D) of paths or bytes. Raises PictureError."""
    import numpy as np

    sources = [open_source(picture) if isinstance(picture, str) else picture for picture in pictures]
    return model.embed_images(np.stack([model.preprocess(open_picture(source, model.size)[0]) for source in sources]))
