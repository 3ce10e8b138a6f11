"""Prediction files as rows: vlmkit's records, VQA and COCO results, lmms-eval samples, VLMEvalKit tables."""

import ast
import csv
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

from vlmkit.errors import VlmkitError
from vlmkit.io.inputs import Reading, records_of
from vlmkit.io.records import Failed, Record, loads

CELL_BYTES = 1 << 28  # a table's cell may hold a picture
PICTURE_CELL = 1000  # characters without a space that no answer has
OTHER_KEYS = ("question_id", "questionId", "image_id", "doc_id", "index")
TOLD = 3  # ids that an error names


@dataclass(frozen=True, slots=True)
class Names:
    """Field names, dotted for nested ones (`doc.answers`, `resps.0`); None for what suits the task and the file."""

    id: str | None = None
    prediction: str | None = None
    references: str | None = None
    question: str = "question"


@dataclass(slots=True)
class Row:
    """One item to score."""

    id: str
    record: Record
    prediction: Any
    references: list[str]
    question: str


@dataclass(frozen=True, slots=True)
class Source:
    """A predictions file on disk; `name` is what errors call it, `folder` where relative pictures are."""

    path: str
    name: str
    folder: str | None = None

    def is_table(self) -> bool:
        """Whether it is a table as VLMEvalKit writes it."""
        return self.path.lower().endswith((".tsv", ".xlsx"))

    def sha(self) -> str:
        """Twelve hex digits of the SHA-256 of the file's bytes."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def field(record: Any, path: str) -> Any:
    """The value of `path` in `record`, None where it is absent. The whole path may be one key, dots included."""
    if isinstance(record, dict) and path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    if isinstance(record, dict):
        inner = record.get(head)
    elif isinstance(record, list) and head.isdecimal() and int(head) < len(record):
        inner = record[int(head)]
    else:
        return None
    return field(inner, rest) if dot else inner


def read_records(source: Source) -> Iterator[Record]:
    """The records of a file by its content, tables by their name. Raises VlmkitError at the first that is broken."""
    kind = os.path.splitext(source.path)[1].lower()
    if kind == ".tsv":
        yield from _tsv(source)
    elif kind == ".xlsx":
        yield from _xlsx(source)
    else:
        for record in records_of([source.path], Reading(images=source.folder)):
            if isinstance(record, Failed):
                place = str(record.id or record.image).replace(source.path, source.name)
                raise VlmkitError(f"{place}: {record.error}", "mend the file: no item is left out silently")
            if record.get("image") == os.path.abspath(source.path):
                raise VlmkitError(f"{source.name}: no records", "give JSONL or JSON")
            yield record


def _tsv(source: Source) -> Iterator[Record]:
    csv.field_size_limit(CELL_BYTES)
    try:
        with open(source.path, encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                yield {str(k): _cell(v) for k, v in row.items() if v and not _is_picture(v)}
    except UnicodeDecodeError as error:
        raise VlmkitError(f"{source.name}: {error}", "save it as UTF-8") from None


def _xlsx(source: Source) -> Iterator[Record]:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise VlmkitError("openpyxl is not installed", "pip install 'vlmkit[eval]' to read xlsx") from None
    try:
        book = load_workbook(source.path, read_only=True, data_only=True)
    except (BadZipFile, KeyError):
        raise VlmkitError(f"{source.name}: not an xlsx file", "save it again as xlsx or tsv") from None
    try:
        rows = book.worksheets[0].iter_rows(values_only=True)
        names = [str(name) for name in next(rows, ())]
        for row in rows:
            yield {k: _cell(v) for k, v in zip(names, row, strict=False) if v is not None and not _is_picture(v)}
    finally:
        book.close()


def _is_picture(value: Any) -> bool:
    """Whether a cell holds a picture in base64, as VLMEvalKit's tables do: nothing to score."""
    return isinstance(value, str) and len(value) > PICTURE_CELL and not value[:PICTURE_CELL].count(" ")


def _cell(value: Any) -> Any:
    """A cell; VLMEvalKit writes several references as a Python list."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value


def text_of(value: Any) -> str | None:
    """A string of a JSON value: numbers as they are written, a list of one (lmms-eval's responses) opened."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("answer", value.get("caption"))
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a spreadsheet keeps 2 as 2.0
    return str(value) if isinstance(value, str | int | float) else None


def number_of(record: Record, path: str, key: str) -> float:
    """The number in a field. Raises VlmkitError without one."""
    value = field(record, path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise VlmkitError(f"{key} has no number in the field {path}", f"name another field, one of: {_fields(record)}")
    return float(value)


def texts_of(value: Any) -> list[str]:
    """References: a list of strings, of VQA's `{"answer": …}`, or one string."""
    found = [text_of(item) for item in value] if isinstance(value, list) else [text_of(value)]
    return [text for text in found if text is not None]


def is_lmms_sample(record: Record) -> bool:
    """Whether `record` is a line of lmms-eval's `*_samples_*.jsonl`."""
    return "doc_id" in record and ("filtered_resps" in record or "resps" in record)


def with_lmms_fields(record: Record) -> Record:
    """An lmms-eval sample with the fields of its document beside its own, which win where both have one."""
    doc = record.get("doc")
    return (doc if isinstance(doc, dict) else {}) | record


def identity(record: Record, names: Names, number: int) -> str:
    """The id of an item: the named field, `id`, another tool's key, or its place in the file.

    Where it is no more than the picture, the question belongs to it, as several may be asked about one picture.
    """
    if names.id is not None:
        found = text_of(field(record, names.id))
        if found is None:
            raise VlmkitError(f"item {number} has no field {names.id}", f"use --id FIELD, one of: {_fields(record)}")
        return found
    # An id that only repeats the picture or the text was made up on reading: another tool's key says more.
    made_up = record.get("id") in (record.get("image"), record.get("text"))
    keys = (*OTHER_KEYS, "id") if made_up else ("id", *OTHER_KEYS)
    key, found = next(((key, found) for key in keys if (found := text_of(record.get(key)))), ("", f"item {number}"))
    asked = text_of(field(record, names.question)) if made_up and key == "id" else None
    return found if asked is None or asked == found else f"{found}: {asked}"


def missing(what: str, ids: list[str], flag: str, record: Record) -> VlmkitError:
    return VlmkitError(f"no {what} in {told(ids)}", f"name the field with {flag} FIELD, one of: {_fields(record)}")


def told(ids: list[str]) -> str:
    """The first ids of a list, and how many more there are."""
    more = f" and {len(ids) - TOLD} more" if len(ids) > TOLD else ""
    return ", ".join(ids[:TOLD]) + more


def _fields(record: Record) -> str:
    return ", ".join(list(record)[:12])


def distinct(ids: list[str]) -> None:
    """Raise VlmkitError, naming them, where ids occur twice: an item must count once."""
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    twice = [key for key in ids if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    raise VlmkitError(f"duplicate ids: {told(list(dict.fromkeys(twice)))}", "give each item its own with --id FIELD")


def read_truth(path: str, names: Names) -> dict[str, Record]:
    """References by id: records, or the annotations of VQA v2 and COCO captions (several captions of one image)."""
    source = Source(path, path)
    if not os.path.isfile(path):
        raise VlmkitError(f"{path}: no such file", "check the name given to --truth")
    truth: dict[str, Record] = {}
    for number, record in enumerate(_annotations(source), 1):
        key = identity(record, names, number)
        if "caption" in record and "captions" not in record:
            truth.setdefault(key, {"captions": []})["captions"].append(record["caption"])
        elif key in truth:
            raise VlmkitError(f"{path}: duplicate ids: {key}", "give each item its own with --id FIELD")
        else:
            truth[key] = record
    return truth


def _annotations(source: Source) -> Iterator[Record]:
    if not source.path.lower().endswith(".json"):
        yield from read_records(source)
        return
    with open(source.path, "rb") as file:
        data = file.read()
    try:
        value = loads(data)
    except ValueError:
        yield from read_records(source)  # JSONL by another name
        return
    rows = value.get("annotations", [value]) if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise VlmkitError(f"{source.name}: no annotations", "give records, VQA or COCO annotations")
    # The id of a COCO caption is not that of its image, which predictions are made for.
    yield from ({k: v for k, v in row.items() if k != "id"} if "caption" in row else row for row in rows)


def read_rows(
    source: Source, names: Names, prediction: str, references: tuple[str, ...], truth: str | None = None
) -> Iterator[Row]:
    """The items of `source`. `prediction` and `references` are the fields where `names` has none.

    Raises VlmkitError at the end, naming them, for items without a prediction or without references.
    """
    known = None if truth is None else read_truth(truth, names)
    if names.prediction is None and source.is_table():
        prediction, references = "prediction", ("answer",)
    mute: list[str] = []
    bare: list[str] = []
    record: Record = {}
    wanted = prediction
    number = 0
    for number, found in enumerate(read_records(source), 1):
        key = identity(found, names, number)
        record = found
        if known is not None:
            record = known.pop(key, {}) | found
        wanted, usual = prediction, references
        if is_lmms_sample(record):
            record = with_lmms_fields(record)
            wanted = "filtered_resps" if "filtered_resps" in record else "resps"
            usual = (*references, "answer", "target")
        given = field(record, names.prediction or wanted)
        right = [texts_of(field(record, name)) for name in ([names.references] if names.references else usual)]
        row = Row(key, record, given, next(filter(None, right), []), str(field(record, names.question) or ""))
        if given is None:
            mute.append(key)
        elif not row.references:
            bare.append(key)
        else:
            yield row
    if mute:
        raise missing(f"prediction {names.prediction or wanted}", mute, "--prediction", record)
    if bare:
        raise missing("references", bare, "--truth FILE or --references", record)
    if known and number:
        raise VlmkitError(f"no prediction for {told(list(known))} of {truth}", "predict them, or cut the file")
