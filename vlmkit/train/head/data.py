"""Reads what a head learns from: records with a label, and with a vector or a picture that the embedder sees."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np

from vlmkit.embed import own_vectors, vectors
from vlmkit.errors import VlmkitError
from vlmkit.io.inputs import Item, Reading, read_inputs
from vlmkit.io.records import Failed, Record, fingerprint_of, name_of
from vlmkit.io.terminal import Failures, progress, warn
from vlmkit.models.head import CLASS, CLASSES, NUMBER
from vlmkit.models.load import load_embedder
from vlmkit.models.types import Embedder, Hardware
from vlmkit.train.config import HeadConfig
from vlmkit.train.head.fit import Problem

DEFAULT = "mini"
FEWEST = 2  # labels, or numbers, that there must be
KINDS = {CLASS: "a label", CLASSES: "a list of labels", NUMBER: "a number"}
NAMED = 5  # labels in a message


@dataclass(slots=True)
class Read:
    """The rows that can be used: unit vectors, what each is labelled with, and counts for the card.

    `embedder` is the identity of the model of the vectors.
    """

    embedder: str
    target: str | None
    vectors: list[np.ndarray] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    seen: dict[bytes, Any] = field(default_factory=dict)
    read: int = 0
    repeats: int = 0
    contradictions: int = 0
    foreign: Counter[str] = field(default_factory=Counter)

    def labels(self) -> Counter[str]:
        """How many rows each label has, the labels in their order."""
        lists = (value if isinstance(value, list) else [value] for value in self.values)
        counts = Counter(chain.from_iterable(lists))
        return Counter({label: counts[label] for label in sorted(counts)})

    def problem(self, config: HeadConfig) -> Problem:
        """What is to be fitted. Raises VlmkitError where there is too little of it."""
        if len(self.vectors) < config.folds:
            what = f"{len(self.vectors)} rows are fewer than the {config.folds} folds"
            raise VlmkitError(what, "give more rows, or a smaller --folds")
        target, names = str(self.target), [config.label] if self.target == NUMBER else [*self.labels()]
        kinds = len(set(self.values)) if target == NUMBER else len(names)
        if (kinds < FEWEST and target != CLASSES) or not kinds:
            what = (
                "all rows have the same number" if target == NUMBER else f"all rows are {', '.join(names) or 'empty'}"
            )
            raise VlmkitError(f"{what}: there is nothing to tell apart", "give rows of another label, too")
        if target == NUMBER:
            y = np.array(self.values, np.float64)[:, None]
        else:
            y = np.zeros((len(self.values), len(names)))
            places = {name: place for place, name in enumerate(names)}
            for row, value in zip(y, self.values, strict=True):
                row[[places[label] for label in (value if target == CLASSES else [value])]] = 1
        x = np.stack(self.vectors).astype(np.float64)
        return Problem(x, y, target, names, config.folds, config.seed, config.balance, config.l2)


def read_rows(config: HeadConfig, failures: Failures, quiet: bool) -> Read:
    """The rows of `config.data`. Raises VlmkitError where there are none."""
    reading = Reading(images=config.images, one_picture=True)
    items: Iterator[Item | Failed] = chain.from_iterable(
        islice(read_inputs([name], reading), config.limit) for name in config.data
    )
    first = next(items, None)
    items = chain([first] if first is not None else [], items)
    model = _Model(config, _identity(config, first))
    found = Read(model.identity, config.target)
    labelled = (_labelled(item, config, found) for item in items)
    embedded = own_vectors(labelled, fingerprint_of(model.identity), model.embed)
    for record, vector in failures.filter_failures(progress(embedded, quiet=quiet, unit="records")):
        _add(found, record, vector, config)
    found.embedder = model.identity
    _tell(found, config, failures)
    return found


class _Model:
    """The embedder, opened when a record without its vector comes."""

    def __init__(self, config: HeadConfig, identity: str) -> None:
        self._config, self.identity = config, identity
        self.opened: Embedder | None = None
        if "@" not in identity:
            self._open(identity)

    def _open(self, name: str) -> Embedder:
        self.opened = load_embedder(name, Hardware(self._config.device))
        if "@" in self.identity and fingerprint_of(self.identity) != fingerprint_of(self.opened.identity):
            what = f"the vectors are of {self.identity}, and the model here is {self.opened.identity}"
            raise VlmkitError(what, "embed all rows with one model, or name it with -m")
        self.identity = self.opened.identity
        return self.opened

    def embed(self, items: Iterable[Item | Failed]) -> "Iterator[tuple[Record, np.ndarray] | Failed]":
        model = self.opened or self._open(name_of(self.identity))
        how: dict[str, Any] = {"batch_size": self._config.batch_size, "workers": self._config.loaders()}
        return vectors(items, model, reuse=True, **how)


def _identity(config: HeadConfig, first: Item | Failed | None) -> str:
    """The embedder: that of `config`, by its name, else that of the first record's vector, else DEFAULT."""
    if config.model is not None:
        return config.model
    record = first.record if isinstance(first, Item) else {}
    return str(record["model"]) if record.get("embedding") is not None and record.get("model") else DEFAULT


def _labelled(item: Item | Failed, config: HeadConfig, found: Read) -> Item | Failed:
    """`item`, if it says what is to be learned of it. The first one decides the target unless it is set."""
    found.read += 1
    if isinstance(item, Failed):
        return item
    item.complete()
    value = _value(item.record, config)
    if value is None:
        return Failed.of(item.record, f"it has no {config.label}", "label it, or name the field with --label")
    kind = CLASSES if isinstance(value, list) else CLASS if isinstance(value, str | bool) else NUMBER
    found.target = found.target or kind
    if (kind == found.target or (found.target == CLASS and kind == NUMBER)) and _is_sound(value):
        model = str(item.record.get("model") or "an unnamed model")
        if item.record.get("embedding") is None or fingerprint_of(model) == fingerprint_of(found.embedder):
            return item
        if not (item.record.get("image") or item.record.get("text")):
            return Failed.of(item.record, f"its embedding is by {model}, not by {found.embedder}", "embed it again")
        found.foreign[model] += 1
        return item
    what = f"its {config.label} is {KINDS[kind] if _is_sound(value) else 'of no use'}, not {KINDS[found.target]}"
    return Failed.of(item.record, what, "correct it, or set --target")


def _value(record: Record, config: HeadConfig) -> Any:
    """What is to be learned, None without it; beside `label` that may stand in `labels`, a list of texts."""
    value = record.get(config.label)
    if value in (None, "") and config.label == "label" and isinstance(record.get("labels"), list):
        value = record["labels"]
    return None if value == "" else value


def _is_sound(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(label, str) and label.strip() for label in value)
    return math.isfinite(value) if isinstance(value, int | float) else isinstance(value, str)


def _add(found: Read, record: Record, vector: np.ndarray, config: HeadConfig) -> None:
    """Take a row over, but for the exact repeat of an earlier one."""
    value: Any = _value(record, config)
    if found.target == CLASS:
        value = str(value).lower() if isinstance(value, bool) else str(value).strip()
    elif found.target == CLASSES:
        value = sorted({label.strip() for label in value})
    else:
        value = float(value)
    if found.vectors and len(vector) != len(found.vectors[0]):
        what = f"{record.get('id')} has a vector of {len(vector)} numbers, those before have {len(found.vectors[0])}"
        raise VlmkitError(what, "embed all rows with one model")
    key = vector.astype(np.float16).tobytes()
    if key in found.seen:
        found.repeats += found.seen[key] == value
        found.contradictions += found.seen[key] != value
        if found.seen[key] == value:
            return
    found.seen[key] = value
    found.vectors.append(vector)
    found.values.append(value)


def _tell(found: Read, config: HeadConfig, failures: Failures) -> None:
    """What a user should know of the rows. Raises VlmkitError where none is left."""
    if not found.vectors:
        raise VlmkitError("no row can be used", f"give records with {config.label}, and a picture or a vector")
    if failures.count:
        warn(f"{failures.count} of {found.read} rows cannot be used: correct them, or go on without them")
    if found.repeats:
        warn(f"{found.repeats} rows repeat earlier ones and are left out: the folds would know them")
    if found.contradictions:
        warn(f"{found.contradictions} rows have the vector of another row and another label: correct one of them")
    if foreign := found.foreign.most_common(1):
        warn(f"{found.foreign.total()} rows bring vectors of {foreign[0][0]}: their pictures are embedded")
    if found.target == NUMBER:
        if config.target is None and len(set(found.values)) == FEWEST:
            warn(f"{config.label} is one of two numbers and is learned as a number: for two classes set --target class")
        return
    counts = found.labels()
    if few := [f"{label} ({count})" for label, count in counts.items() if count < config.folds]:
        more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
        warn(f"too few rows for each of {config.folds} folds: {', '.join(few[:NAMED])}{more}: label more of them")
