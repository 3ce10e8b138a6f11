"""Reads prediction files: vlmkit's records, VQA and COCO results, lmms-eval samples, VLMEvalKit tables."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.eval import tables
from vlmkit.io.records import Failed, Record, loads
from vlmkit.io.values import text_of, texts_of, value_at

if TYPE_CHECKING:
    from vlmkit.models.types import Embedder

OTHER_KEYS = ("question_id", "questionId", "image_id", "doc_id", "index")
ABSENT = object()
LISTED_IDS = 3
MAKERS = {"answer": "ask", "caption": "caption", "label": "classify"}  # commands, by the field that they write
LISTED_FIELDS = 12


@dataclass(frozen=True, slots=True)
class Options:
    """Options of an evaluation; a task ignores those that it does not use.

    Names of nested fields are dotted (`doc.answers`, `resps.0`); None stands for the task's default field.
    """

    id: str | None = None
    prediction: str | None = None
    references: str | None = None
    question: str = "question"
    variant: str | None = None
    by: str | None = None
    cluster: str | None = None
    latency: str | None = None  # field with the seconds that a prediction took
    truth: str | None = None
    metrics: tuple[str, ...] = ()
    details: bool = False  # keep what --items and --html show
    ks: tuple[int, ...] = (1, 5, 10)
    tokenizer: str | None = None  # ptb, py, none; None for ptb where Java can be run
    model: "Callable[[str | None], Embedder] | None" = None  # loads the model that -m names, or else the one given
    model_asked: bool = False
    batch_size: int = 16
    workers: int = 1

    def wants(self, *metrics: str) -> bool:
        """Whether one of `metrics` is to be computed: it was named, or no metric was."""
        return not self.metrics or not set(metrics).isdisjoint(self.metrics)


@dataclass(slots=True)
class Row:
    """One item to score."""

    id: str
    record: Record
    prediction: Any = None
    references: list[str] = field(default_factory=list)
    question: str = ""
    reference_value: Any = None  # what the references are the texts of

    def answer(self) -> str:
        """The prediction as text, "" where it says nothing. One that lists all the references is one of them."""
        if self.references and isinstance(self.prediction, list) and texts_of(self.prediction) == self.references:
            return max(self.references, key=self.references.count)
        return text_of(self.prediction) or ""


@dataclass(frozen=True, slots=True)
class Source:
    """A predictions file on disk; `name` is what errors call it, `folder` where relative pictures are."""

    path: str
    name: str
    folder: str | None = None

    def is_table(self) -> bool:
        """Whether it is a table: TSV, CSV or xlsx."""
        return tables.is_table(self.path)

    def sha(self) -> str:
        """Twelve hex digits of the SHA-256 of the file's bytes."""
        import hashlib

        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def number_at(record: Record, path: str, key: str) -> float:
    """The number in a field of the item called `key`. Raises VlmkitError where there is none."""
    value = value_at(record, path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise VlmkitError(f"{key}: the field {path} is not a number", f"name another field, one of: {_fields(record)}")
    return float(value)


def _fields(record: Record) -> str:
    return ", ".join(list(record)[:LISTED_FIELDS])


# Files


def read_records(source: Source) -> Iterator[Record]:
    """The records of a file by its content. Raises VlmkitError at the first broken record."""
    if source.is_table():
        yield from tables.read_predictions(source.path, source.name)
        return
    from vlmkit.io.inputs import Reading, records_of

    for record in records_of([source.path], Reading(images=source.folder)):
        if isinstance(record, Failed):
            place = str(record.id or record.image).replace(source.path, source.name)
            raise VlmkitError(f"{place}: {record.error}", "correct the file: no record is skipped")
        if record.get("image") == os.path.abspath(source.path):
            raise VlmkitError(f"{source.name}: no records", "give JSONL or JSON")
        yield record


# Items


def identify(record: Record, options: Options, number: int) -> str:
    """The id of an item: the named field, `id`, another tool's key, or its place in the file.

    Where it is only the picture's path, the question is added, as a picture may have several.
    """
    if options.id is not None:
        key = text_of(value_at(record, options.id))
        if not key:
            raise VlmkitError(f"item {number} has no field {options.id}", f"use --id FIELD, one of: {_fields(record)}")
        return key
    # An id that only repeats the picture or the text was made up on reading: another tool's key says more.
    made_up = record.get("id") in (record.get("image"), record.get("text"))
    for name in (*OTHER_KEYS, "id") if made_up else ("id", *OTHER_KEYS):
        key = text_of(record.get(name))
        if key:
            question = text_of(value_at(record, options.question)) if made_up and name == "id" else None
            return key if question in (None, key) else f"{key}: {question}"
    return f"item {number}"


def list_ids(ids: list[str]) -> str:
    """The first ids of a list, and how many more there are."""
    more = f" and {len(ids) - LISTED_IDS} more" if len(ids) > LISTED_IDS else ""
    return ", ".join(ids[:LISTED_IDS]) + more


def check_distinct(ids: list[str]) -> None:
    """Raise VlmkitError, naming them, where ids occur twice: an item must count once."""
    if len(set(ids)) < len(ids):
        from collections import Counter

        twice = [key for key, count in Counter(ids).items() if count > 1]
        raise VlmkitError(f"duplicate ids: {list_ids(twice)}", "give each item its own with --id FIELD")


def read_rows(
    source: Source, options: Options, predictions: tuple[str, ...], references: tuple[str, ...]
) -> Iterator[Row]:
    """The items of `source`; `predictions` and `references` are the task's fields, of which the first counts.

    Raises VlmkitError at the end, naming them, for items without a prediction or without references.
    """
    annotations = None if options.truth is None else _read_truth(options.truth, options)
    is_table = options.prediction is None and source.is_table()
    if is_table:
        predictions, references = ("prediction",), ("answers", "answer")
    without_prediction: list[str] = []
    without_reference: list[str] = []
    record: Record = {}
    wanted = options.prediction or predictions[-1]
    for number, own in enumerate(read_records(source), 1):
        key = identify(own, options, number)
        record = own if annotations is None else annotations.pop(key, {}) | own
        if is_table and "answers" in record:  # then the answer is the model's
            predictions = ("prediction", "answer")
        wanted = options.prediction or next((name for name in predictions if name in record), predictions[-1])
        usual = tuple(name for name in references if name != wanted)
        if is_lmms_sample(record):
            doc = record.get("doc")
            record = (doc if isinstance(doc, dict) else {}) | record
            wanted = options.prediction or ("filtered_resps" if "filtered_resps" in record else "resps")
            usual = (*references, "answer", "target")
        given = value_at(record, wanted, ABSENT)
        values = (value_at(record, name) for name in ([options.references] if options.references else usual))
        truth = next((value for value in values if texts_of(value)), None)
        row = Row(key, record, given, texts_of(truth), str(value_at(record, options.question) or ""), truth)
        if given is ABSENT:
            without_prediction.append(key)
        elif not row.references:
            without_reference.append(key)
        else:
            yield row
    for ids, what, flag in (
        (without_prediction, f"prediction (field {wanted})", "--prediction"),
        (without_reference, "references", "--truth FILE or --references"),
    ):
        if ids:
            remedy = f"name the field with {flag} FIELD, one of: {_fields(record)}"
            if flag == "--prediction" and wanted in MAKERS:
                remedy = f"write it with vlmkit {MAKERS[wanted]} {source.name} -o FILE, or {remedy}"
            raise VlmkitError(f"no {what} in {list_ids(ids)}", remedy)
    if annotations and record:
        what = f"no prediction for {list_ids(list(annotations))} of {options.truth}"
        raise VlmkitError(what, "predict these items, or remove them from the file")


def is_lmms_sample(record: Record) -> bool:
    """Whether `record` is a line of lmms-eval's `*_samples_*.jsonl`."""
    return "doc_id" in record and ("filtered_resps" in record or "resps" in record)


def _read_truth(path: str, options: Options) -> dict[str, Record]:
    """References by id: records, or the annotations of VQA v2 and COCO captions (several captions of one image)."""
    if not os.path.isfile(path):
        raise VlmkitError(f"{path}: no such file", "check the name given to --truth")
    truth: dict[str, Record] = {}
    for number, record in enumerate(_annotations(Source(path, path)), 1):
        key = identify(record, options, number)
        if "caption" in record and "captions" not in record:
            truth.setdefault(key, {"captions": []})["captions"].append(record["caption"])
        elif key in truth:
            raise VlmkitError(f"{path}: duplicate ids: {key}", "give each item its own with --id FIELD")
        else:
            truth[key] = record
    return truth


def _annotations(source: Source) -> Iterator[Record]:
    value = None
    if source.path.lower().endswith(".json"):
        with open(source.path, "rb") as file, contextlib.suppress(ValueError):  # JSONL by another name
            value = loads(file.read())
    if value is None:
        yield from read_records(source)
        return
    rows = value.get("annotations", [value]) if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise VlmkitError(f"{source.name}: no annotations", "give records, VQA or COCO annotations")
    # The id of a COCO caption is not that of its image, which predictions are made for.
    yield from ({k: v for k, v in row.items() if k != "id"} if "caption" in row else row for row in rows)
