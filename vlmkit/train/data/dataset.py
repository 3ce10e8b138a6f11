"""DATA for `vlmkit train`: every row read and checked before the first step."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.io.executor import ahead
from vlmkit.io.images import check_picture
from vlmkit.io.inputs import Item, Reading, read_inputs
from vlmkit.io.records import Failed, Record, batched
from vlmkit.io.sources import Bytes, PictureError, is_data, is_uri, is_url, open_source
from vlmkit.io.terminal import Failures, progress
from vlmkit.train.data.mixture import Mixture, Row, parse_weight
from vlmkit.train.data.report import Counts
from vlmkit.train.data.samples import (
    Captioned,
    Unusable,
    coco_records,
    in_usual_form,
    is_coco,
    parse_captioned,
    parse_dialogues,
    parse_preferences,
    picture_names,
)

MISSING = "missing picture"
AT_ONCE = 64  # rows that one thread checks
Parse = Callable[[Record, str, tuple[Bytes, ...]], list[Row]]
FORMS: dict[Any, str] = {
    parse_dialogues: "captions, a question and answers, conversations or messages",
    parse_preferences: "image, question, chosen and rejected",
    parse_captioned: "image and captions",
}


def read_data(
    data: list[str],
    parse: Parse[Row],
    *,
    failures: Failures,
    images: str | None = None,
    limit: int | None = None,
    check: bool = True,
    workers: int = 4,
    quiet: bool = False,
) -> Mixture[Row]:
    """The samples of DATA: records, LLaVA JSON, COCO captions, tar shards, `-`; `2:DATA` counts twice an epoch.

    `parse`, one of FORMS, makes samples of a record. Of each DATA at most the first `limit` rows are read; `images` is
    the folder of relative picture names. A row that cannot be used is dropped, counted and goes to `failures`: a
    picture that is missing or, with `check`, incomplete judging by header and end, no reply, placeholders that do not
    match the pictures, speakers that do not alternate, the exact repeat of an earlier row. Pictures are not decoded
    here, so damage inside one is found only in training. No picture is kept in memory: 558,000 rows take 0.6 GB, and
    1.1 GB while they are read from one JSON array. Raises VlmkitError where nothing is left.
    """
    made: Mixture[Row] = Mixture([], [], [Counts(*parse_weight(text)) for text in data or ["-"]])
    opened = [read_inputs([counts.name], Reading(images=images)) for counts in made.table]  # a missing one raises here
    pictures = _Pictures(check)
    seen: set[int] = set()
    for number, (counts, items) in enumerate(zip(made.table, opened, strict=True)):
        reader = _Reader(parse, pictures, counts.name, os.path.abspath(images or os.path.dirname(counts.name)))
        rows = enumerate(islice(chain.from_iterable(map(_expand, items)), limit), 1)
        results = chain.from_iterable(ahead(batched(rows, AT_ONCE), reader.read, workers, 4 * workers))
        counted = _count(results, counts, seen)
        digest = hashlib.sha256()
        for found in failures.filter_failures(progress(counted, quiet=quiet, unit="rows")):
            made.rows.extend(found)
            made.sources.extend([number] * len(found))
            digest.update(_content(found))
        counts.fingerprint = digest.hexdigest()[:12]
    if not made.rows:
        raise _nothing_left(made.table, FORMS[parse])
    return made


def _expand(item: Item | Failed) -> Iterable[Item | Failed]:
    """`item`, or the pictures of the COCO document that it is."""
    if isinstance(item, Failed) or not is_coco(item.record):
        return [item]
    return (found if isinstance(found, Failed) else Item(found) for found in coco_records(item.record))


@dataclass(slots=True)
class _Pictures:
    """The pictures so far, each checked once: its source, or why it cannot be used."""

    check: bool
    known: dict[str, Bytes | Unusable] = field(default_factory=dict)

    def find(self, name: str, source: Bytes | None) -> Bytes:
        """The picture `name`, an absolute path, at `source` where that is known. Raises Unusable."""
        found = self.known.get(name)
        if found is None:
            found = self.known[name] = self._open(name, source)
        if isinstance(found, Unusable):
            raise found
        return found

    def _open(self, name: str, source: Bytes | None) -> Bytes | Unusable:
        if is_url(name):
            return Unusable("picture by URL", "vlmkit download fetches it", name)
        reason = MISSING
        try:
            source = source or open_source(name)
            reason = "unreadable picture"
            if self.check:
                check_picture(source)
        except PictureError as error:
            return Unusable(reason, str(error), None if is_data(name) else name)
        return source


class _Dropped(NamedTuple):
    reason: str
    failed: Failed


@dataclass(frozen=True, slots=True)
class _Reader:
    """Makes samples of the rows of one DATA; relative picture names start from `folder`."""

    parse: Callable[[Record, str, tuple[Bytes, ...]], list[Any]]
    pictures: _Pictures
    path: str
    folder: str

    def read(self, rows: list[tuple[int, Item | Failed]]) -> list[list[Any] | _Dropped]:
        return [self._read(item, f"{self.path}:{number}") for number, item in rows]

    def _read(self, item: Item | Failed, place: str) -> list[Any] | _Dropped:
        if isinstance(item, Failed):
            return _Dropped("unreadable row", item)
        id = str(item.record.get("id", place))
        try:
            record = in_usual_form(item.record)
            names = picture_names(record)
            known = item.source if len(names) == 1 else None
            paths = [name if is_uri(name) else os.path.normpath(os.path.join(self.folder, name)) for name in names]
            return self.parse(record, id, tuple(self.pictures.find(path, known) for path in paths))
        except Unusable as unusable:
            return _Dropped(unusable.reason, Failed(id, unusable.image, str(unusable)))


def _count(results: Iterator[list[Row] | _Dropped], counts: Counts, seen: set[int]) -> Iterator[list[Row] | Failed]:
    """The usable rows and the failures, counted in `counts`; repeated rows fail. `seen` are hashes of rows."""
    for result in results:
        counts.read += 1
        if not isinstance(result, _Dropped):
            key = hash(tuple(result))
            if key not in seen:
                seen.add(key)
                counts.samples += len(result)
                yield result
                continue
            repeats = "repeats an earlier row"
            result = _Dropped(repeats, Failed(result[0].id, None, repeats))
        counts.reasons[result.reason] += 1
        yield result.failed


def _content(rows: list[Any]) -> bytes:
    """The texts of rows, and the names and sizes of their pictures, wherever they are."""
    pictures = [(os.path.basename(str(picture)), picture.size) for picture in rows[0].pictures]
    texts = [replace(row, **{"picture" if isinstance(row, Captioned) else "pictures": None}) for row in rows]
    return repr((pictures, texts)).encode(errors="surrogatepass")


def _nothing_left(table: list[Counts], form: str) -> VlmkitError:
    names = ", ".join(counts.name for counts in table)
    why = "; ".join(counts.why for counts in table if counts.dropped) or "no rows"
    what = f"nothing in {names} can be used for training ({why})"
    if all(set(counts.reasons) <= {MISSING} for counts in table) and any(counts.dropped for counts in table):
        return VlmkitError(what, "name the folder of the pictures with --images")
    return VlmkitError(what, f"give records with {form} (vlmkit train --help)")
