"""DATA for `vlmkit train`: every row read and checked before the first step."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.io.images import ahead, check_picture
from vlmkit.io.inputs import Item, read_inputs
from vlmkit.io.inputs import Reading as Form
from vlmkit.io.records import Failed, Record, batched
from vlmkit.io.sources import Bytes, PictureError, is_url, open_source
from vlmkit.io.terminal import Failures, progress
from vlmkit.train.data.mixture import Entry, Reading, Row, held_out
from vlmkit.train.data.report import Counts
from vlmkit.train.data.samples import (
    Captioned,
    Dialogue,
    Preference,
    Turn,
    Unusable,
    captioned,
    coco_records,
    dialogues,
    is_coco,
    picture_names,
    preferences,
)

__all__ = [
    "Dialogue",
    "Preference",
    "Reading",
    "Turn",
    "held_out",
    "read_captioned",
    "read_dialogues",
    "read_preferences",
]

MISSING = "missing picture"
AT_ONCE = 64  # rows that one thread checks
Learn = Callable[[Record, str, tuple[Bytes, ...]], list[Row]]
FORMS: dict[Any, str] = {
    dialogues: "captions, a question and answers, or conversations",
    preferences: "image, question, chosen and rejected",
    captioned: "image and captions",
}


def read_dialogues(
    data: list[str],
    *,
    images: str | None = None,
    limit: int | None = None,
    failures: Failures,
    check: bool = True,
    workers: int = 4,
    quiet: bool = False,
) -> Reading[Dialogue]:
    """The dialogues of DATA: records, LLaVA JSON, COCO captions, tar shards, `-`; `2:DATA` counts twice an epoch.

    Of each DATA at most the first `limit` rows are read; `images` is the folder of relative picture names. A row that
    cannot be used goes to `failures` and into the table, never into training: a picture that is missing or, with
    `check`, not whole as far as header and end tell (`check_picture`), no reply, marks that do not match the pictures,
    speakers out of turn, the exact repeat of an earlier row. Pictures are not decoded here, so one that is damaged
    inside shows only in training. No picture is held: 558,000 rows take 0.6 GB, while they come from one JSON array
    1.1 GB. Raises VlmkitError where nothing is left.
    """
    return _read(data, dialogues, images, limit, failures, _Pictures(check), workers, quiet)


def read_preferences(
    data: list[str],
    *,
    images: str | None = None,
    limit: int | None = None,
    failures: Failures,
    check: bool = True,
    workers: int = 4,
    quiet: bool = False,
) -> Reading[Preference]:
    """The preferences {image, question, chosen, rejected} of DATA, read and checked as `read_dialogues` does it."""
    return _read(data, preferences, images, limit, failures, _Pictures(check), workers, quiet)


def read_captioned(
    data: list[str],
    *,
    images: str | None = None,
    limit: int | None = None,
    failures: Failures,
    check: bool = True,
    workers: int = 4,
    quiet: bool = False,
) -> Reading[Captioned]:
    """The captioned pictures of DATA, read and checked as `read_dialogues` does it: one sample a row."""
    return _read(data, captioned, images, limit, failures, _Pictures(check), workers, quiet)


@dataclass(slots=True)
class _Pictures:
    """The pictures met so far, each looked at once: where it is, or why it cannot be used."""

    check: bool
    known: dict[str, Bytes | Unusable] = field(default_factory=dict)

    def find(self, name: str, source: Bytes | None = None) -> Bytes:
        """The picture `name`, an absolute path, at `source` where that is known. Raises Unusable."""
        found = self.known.get(name)
        if found is None:
            found = self.known[name] = self._look(name, source)
        if isinstance(found, Unusable):
            raise found
        return found

    def _look(self, name: str, source: Bytes | None) -> Bytes | Unusable:
        if is_url(name):
            return Unusable("picture by URL", "vlmkit download fetches it", name)
        try:
            source = source or open_source(name)
        except PictureError as error:
            return Unusable(MISSING, str(error), name)
        try:
            if self.check:
                check_picture(source)
        except PictureError as error:
            return Unusable("unreadable picture", str(error), name)
        return source


@dataclass(slots=True)
class _Dropped:
    reason: str
    failed: Failed


def _read(
    data: list[str],
    learn: Learn[Row],
    images: str | None,
    limit: int | None,
    failures: Failures,
    pictures: _Pictures,
    workers: int,
    quiet: bool,
) -> Reading[Row]:
    entries = [Entry.parse(text) for text in data or ["-"]]
    opened = [read_inputs([entry.path], Form(images=images)) for entry in entries]  # a missing one raises here
    reading: Reading[Row] = Reading([], [], [Counts(*entry) for entry in entries])
    seen: set[int] = set()
    for number, (entry, items) in enumerate(zip(entries, opened, strict=True)):
        folder = images or (os.getcwd() if entry.path == "-" else os.path.dirname(entry.path))

        def work(some: list[tuple[int, Item | Failed]], name=entry.path, folder=folder) -> list[list[Row] | _Dropped]:
            return [_use(item, f"{name}:{line}", os.path.abspath(folder), learn, pictures) for line, item in some]

        rows = enumerate(islice(chain.from_iterable(map(_expanded, items)), limit), 1)
        results = chain.from_iterable(ahead(batched(rows, AT_ONCE), work, workers, 4 * workers))
        counted = _counted(results, reading.table[number], seen)
        for found in failures.filter_failures(progress(counted, quiet=quiet, unit="rows")):
            reading.rows.extend(found)
            reading.sources.extend([number] * len(found))
    if not reading.rows:
        raise _nothing(reading.table, FORMS[learn])
    return reading


def _expanded(item: Item | Failed) -> Iterator[Item | Failed]:
    """`item`, or the pictures of the COCO document that it is."""
    if isinstance(item, Failed) or not is_coco(item.record):
        yield item
        return
    for found in coco_records(item.record):
        yield found if isinstance(found, Failed) else Item(found)


def _use(item: Item | Failed, place: str, folder: str, learn: Learn[Row], pictures: _Pictures) -> list[Row] | _Dropped:
    """What is learned from `item`, the record at `place`; its relative picture names start from `folder`."""
    if isinstance(item, Failed):
        return _Dropped("unreadable row", item)
    key = str(item.record.get("id", place))
    try:
        names = picture_names(item.record)
        known = item.source if len(names) == 1 else None
        paths = [name if is_url(name) else os.path.normpath(os.path.join(folder, name)) for name in names]
        return learn(item.record, key, tuple(pictures.find(path, known) for path in paths))
    except Unusable as unusable:
        return _Dropped(unusable.reason, Failed(key, unusable.image, str(unusable)))


def _counted(results: Iterator[list[Row] | _Dropped], counts: Counts, seen: set[int]) -> Iterator[list[Row] | Failed]:
    for result in results:
        counts.read += 1
        if not isinstance(result, _Dropped):
            mark = hash(tuple(result))
            if mark not in seen:
                seen.add(mark)
                counts.samples += len(result)
                yield result
                continue
            result = _Dropped("repeats an earlier row", Failed(result[0].id, None, "repeats an earlier row"))
        counts.reasons[result.reason] += 1
        yield result.failed


def _nothing(table: list[Counts], form: str) -> VlmkitError:
    names = ", ".join(counts.name for counts in table)
    why = "; ".join(counts.why for counts in table if counts.dropped) or "no rows"
    what = f"nothing in {names} can be trained on ({why})"
    if all(set(counts.reasons) <= {MISSING} for counts in table) and any(counts.dropped for counts in table):
        return VlmkitError(what, "name the folder of the pictures with --images")
    return VlmkitError(what, f"give records with {form} (vlmkit train --help)")
