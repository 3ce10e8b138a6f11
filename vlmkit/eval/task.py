"""What the tasks share: their options, and the columns that every item fills."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.eval import predictions as reading
from vlmkit.eval.predictions import Names, Row
from vlmkit.eval.results import NO_CATEGORY
from vlmkit.io.records import Record

if TYPE_CHECKING:
    import numpy as np

    from vlmkit.models.types import Embedder


@dataclass(frozen=True, slots=True)
class Options:
    """How to evaluate; what a task does not know it ignores."""

    names: Names = field(default_factory=Names)
    variant: str | None = None
    by: str | None = None
    cluster: str | None = None
    latency: str | None = None  # field with the seconds that a prediction took
    truth: str | None = None
    metrics: tuple[str, ...] = ()
    details: bool = False  # keep what --items and --html show
    ks: tuple[int, ...] = (1, 5, 10)
    tokenizer: str | None = None  # ptb, py; None for ptb where Java can be run
    model: "Callable[[str | None], Embedder] | None" = None  # loads the model that -m names, or else the one given
    model_asked: bool = False
    batch_size: int = 16
    workers: int = 1

    def wants(self, *metrics: str) -> bool:
        """Whether one of `metrics` is asked for, by name or by naming none."""
        return not self.metrics or not set(metrics).isdisjoint(self.metrics)

    def pick_variant(self, variants: tuple[str, ...]) -> str:
        """The variant asked for, the first without. Raises VlmkitError for one that the task does not have."""
        if self.variant is not None and self.variant not in variants:
            raise VlmkitError(f"unknown variant {self.variant}", f"use {', '.join(variants)}")
        return self.variant or variants[0]


# In this order: the first that fits decides.
QUESTION_TYPES = {
    "counting": re.compile(r"\bhow (man|many|much)\b|\bnumber of\b|\bcount\b"),
    "yes-no": re.compile(r"^(is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|am|isn't|aren't)\b"),
    "color": re.compile(r"\bcolou?rs?\b"),
    "reading": re.compile(
        r"\b(say|says|said|written|text|word|words|letter|letters|read|spell|spelled|brand|title|sign|printed|logo)\b"
    ),
    "spatial": re.compile(
        r"^where\b|\b(left|right|above|below|under|beneath|behind|front|beside|between|next to|on top|top of|bottom|"
        r"near|nearest|inside|outside|around|corner|side|position|location|located)\b"
    ),
}


def guess_category(question: str) -> str:
    """The type of a question by its words: counting, yes-no, color, reading, spatial, or other."""
    text = question.strip().lower()
    return next((name for name, pattern in QUESTION_TYPES.items() if pattern.search(text)), "other")


@dataclass(slots=True)
class Gathered:
    """The columns that are the same for every task."""

    options: Options
    ids: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    guessed: list[bool] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    reference_counts: set[int] = field(default_factory=set)
    targets: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    details: list[Record] = field(default_factory=list)

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """`rows`, noted down. Raises VlmkitError where ids occur twice or --by, --cluster name no field."""
        by, cluster = self.options.by, self.options.cluster
        for row in rows:
            self.ids.append(row.id)
            self.reference_counts.add(len(row.references))
            self.targets.append(hash(tuple(sorted(row.references))))
            self.words.append(len((reading.text_of(row.prediction) or "").split()))
            if self.options.latency is not None:
                self.seconds.append(reading.number_of(row.record, self.options.latency, row.id))
            if by is not None:
                found = reading.text_of(reading.field(row.record, by))
                guess = found is None and by == "category" and bool(row.question)
                self.categories.append(guess_category(row.question) if guess else found or NO_CATEGORY)
                self.guessed.append(guess)
            if cluster is not None:
                group = reading.text_of(reading.field(row.record, cluster))
                if group is None:
                    raise VlmkitError(f"{row.id} has no field {cluster}", "name the field with --cluster FIELD")
                self.clusters.append(group)
            yield row
        reading.distinct(self.ids)
        if by is not None and self.ids and set(self.categories) == {NO_CATEGORY}:
            raise VlmkitError(f"no item has a field {by}", "name the field with --by FIELD")

    def keep(self, row: Row, shown: Record) -> None:
        """Note what --items and --html show of an item: the record's picture and question, then `shown`."""
        if not self.options.details:
            return
        image = row.record.get("image")
        known = {"id": row.id, "image": image if isinstance(image, str) else None, "question": row.question or None}
        if self.options.by is not None:
            known["category"] = self.categories[len(self.ids) - 1]
        self.details.append({k: v for k, v in known.items() if v is not None} | shown)

    def shared(self) -> dict:
        """The fields of Scores that every task fills alike."""
        import numpy as np

        grouped = self.options.by is not None
        return {
            "ids": self.ids,
            "categories": self.categories if grouped else None,
            "guessed": np.array(self.guessed, bool) if grouped else None,
            "clusters": self.clusters if self.options.cluster is not None else None,
            "details": self.details,
            "targets": self.targets,
            "words": self.words,
            "seconds": self.seconds,
        }

    def refs(self) -> str | None:
        """References an item, for the signature: `10`, or `1-10`."""
        counts = sorted(self.reference_counts)
        return "-".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) if counts else None


def flags(values: list[bool]) -> "np.ndarray":
    import numpy as np

    return np.array(values, bool)
