"""DATA for `vlmkit train`: every row read and checked before the first step."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.io.executor import ahead
from vlmkit.io.images import check_picture
from vlmkit.io.inputs import Item, Reading, read_inputs
from vlmkit.io.passing import Passed
from vlmkit.io.records import Failed, Record, batched
from vlmkit.io.shards import expand_braces
from vlmkit.io.sources import Bytes, PictureError, is_data, is_uri, is_url, open_source, reader_of
from vlmkit.io.terminal import Failures, progress
from vlmkit.train.data.cache import Noted, kept
from vlmkit.train.data.mixture import Mixture, parse_weight
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
from vlmkit.train.data.store import DROPPED, REPORT, Encoded, Row, RowFile, RowWriter, encoded

MISSING = "missing picture"
AT_ONCE = 64  # rows that one thread checks
KNOWN = 1 << 16  # pictures whose check is remembered
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
    here, so damage inside one is found only in training. The rows lie in files that later runs take over while nothing
    has changed (see `cache`), and are read from there one by one. Raises VlmkitError where nothing is left.
    """
    table = [Counts(*parse_weight(text)) for text in data or ["-"]]
    names = [expand_braces(counts.name) for counts in table]
    came: dict[str, bool] = {}
    how = Reading(images=images, on_shard=came.__setitem__)
    opened = [read_inputs(some, how) for some in names]  # a missing one raises here
    reading = _Build(table, opened, came, parse, failures, images, limit, check, workers, quiet)
    settings = [parse.__name__, images and os.path.abspath(images), limit, check]
    with kept(list(chain.from_iterable(names)), settings, reading.build) as folder:
        if not reading.done:
            found = json.loads((folder / REPORT).read_bytes())
            for counts, known in zip(table, found, strict=True):
                counts.read, counts.samples, counts.reasons = known["read"], known["samples"], Counter(known["reasons"])
                counts.fingerprint = known["fingerprint"]
            for _ in failures.filter_failures(_told_before(folder / DROPPED, sum(counts.read for counts in table))):
                pass
        rows: RowFile[Row] = RowFile.open(folder)
    return Mixture(rows, rows.columns["source"], table)


@dataclass(slots=True)
class _Build:
    """Reads and checks the rows of DATA into a store."""

    table: list[Counts]
    opened: list[Iterator[Item | Failed]]
    came: dict[str, bool]  # of the shards on the web, whether they did
    parse: Callable[[Record, str, tuple[Bytes, ...]], list[Any]]
    failures: Failures
    images: str | None
    limit: int | None
    check: bool
    workers: int
    quiet: bool
    done: bool = False

    def build(self, folder: Path, noted: Noted) -> None:
        writer, pictures = RowWriter(folder), _Pictures(self.check, noted)
        with closing(writer), closing(noted), open(folder / DROPPED, "wb") as dropped:
            before = 0
            for number, (counts, items) in enumerate(zip(self.table, self.opened, strict=True)):
                base = os.path.abspath(self.images or os.path.dirname(counts.name))
                reader = _Reader(self.parse, pictures, counts.name, base)
                rows = enumerate(islice(chain.from_iterable(map(_expand, items)), self.limit), 1)
                results = chain.from_iterable(
                    ahead(batched(rows, AT_ONCE), reader.read, self.workers, 4 * self.workers)
                )
                counted = _count(results, counts, partial(writer.add, number), partial(_tell, dropped, before))
                digest = hashlib.sha256()
                for found in self.failures.filter_failures(progress(counted, quiet=self.quiet, unit="rows")):
                    digest.update(found.content)
                counts.fingerprint = digest.hexdigest()[:12]
                before += counts.read
            for url, whole in self.came.items():
                noted.note_shard(url, whole)
        if not writer.at:
            raise _nothing_left(self.table, FORMS[self.parse])
        names = "read", "samples", "reasons", "fingerprint"
        report = [{name: getattr(counts, name) for name in names} for counts in self.table]
        (folder / REPORT).write_text(json.dumps(report))
        self.done = True


def _tell(file: IO[bytes], before: int, number: int, failed: Failed) -> None:
    told = before + number, failed.id, failed.image, failed.error, failed.remedy
    file.write(json.dumps(told).encode() + b"\n")


def _told_before(path: Path, rows: int) -> Iterator[Failed | None]:
    """What became of each row, as it was told when they were read."""
    at = 0
    with open(path, "rb") as lines:
        for number, *failed in map(json.loads, lines):
            yield from repeat(None, number - at)
            yield Failed(*failed)
            at = number + 1
    yield from repeat(None, rows - at)


def _expand(item: Item | Failed) -> Iterable[Item | Failed]:
    """`item`, or the pictures of the COCO document that it is."""
    if isinstance(item, Failed) or not is_coco(item.record):
        return [item]
    return (found if isinstance(found, Failed) else Item(found) for found in coco_records(item.record))


class _Pictures:
    """The pictures so far, the last KNOWN of them checked once: the source, or why it cannot be used."""

    def __init__(self, check: bool, noted: Noted) -> None:
        self.check, self.noted = check, noted
        self.known: Callable[[str, Any], Bytes | Unusable] = lru_cache(KNOWN)(self._open)

    def find(self, name: str, source: Bytes | None) -> Bytes:
        """The picture `name`, an absolute path, at `source` where that is known. Raises Unusable."""
        once = is_data(name) or isinstance(source, Passed)
        found = self._open(name, source) if once else self.known(name, source)
        if isinstance(found, Unusable):
            raise found
        return found

    def _open(self, name: str, source: Bytes | None) -> Bytes | Unusable:
        if is_url(name) and source is None:
            return Unusable("picture by URL", "vlmkit download fetches it", name)
        reason = MISSING
        try:
            source = source or open_source(name)
            if not is_uri(name):
                self.noted.note(getattr(source, "path", name.partition("#")[0]))
            reason = "unreadable picture"
            if self.check:
                check_picture(source)
        except PictureError as error:
            if is_data(name):
                return Unusable(reason, str(error))
            if not is_url(name):
                self.noted.note(name)
            return Unusable(reason, str(error), name)
        return source.part or source if isinstance(source, Passed) else source


@dataclass(frozen=True, slots=True)
class _Parsed:
    """The samples of a row: what they say, the id, and each as a store has it."""

    content: bytes
    id: str
    stored: list[Encoded]


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

    def read(self, rows: list[tuple[int, Item | Failed]]) -> list[_Parsed | _Dropped]:
        return [self._read(item, f"{self.path}:{number}") for number, item in rows]

    def _read(self, item: Item | Failed, place: str) -> _Parsed | _Dropped:
        if isinstance(item, Failed):
            is_shard = item.image is not None and reader_of(item.image) is not None
            return _Dropped("unreadable shard" if is_shard else "unreadable row", item)
        id = str(item.record.get("id", place))
        try:
            record = in_usual_form(item.record)
            names = picture_names(record)
            known = item.source if len(names) == 1 else None
            paths = [name if is_uri(name) else os.path.normpath(os.path.join(self.folder, name)) for name in names]
            rows = self.parse(record, id, tuple(self.pictures.find(path, known) for path in paths))
        except Unusable as unusable:
            return _Dropped(unusable.reason, Failed(id, unusable.image, str(unusable)))
        return _Parsed(_content(rows), rows[0].id, [encoded(row, paths) for row in rows])


def _count(
    results: Iterator[_Parsed | _Dropped],
    counts: Counts,
    add: Callable[[list[Encoded]], bool],
    tell: Callable[[int, Failed], None],
) -> Iterator[_Parsed | Failed]:
    """The usable rows and the failures, counted in `counts`; rows that `add` knows already fail."""
    for number, result in enumerate(results):
        counts.read += 1
        if not isinstance(result, _Dropped):
            if add(result.stored):
                counts.samples += len(result.stored)
                yield result
                continue
            repeats = "repeats an earlier row"
            result = _Dropped(repeats, Failed(result.id, None, repeats))
        counts.reasons[result.reason] += 1
        tell(number, result.failed)
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
