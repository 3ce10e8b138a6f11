"""The samples of a webdataset shard: each picture with the fields and captions that its side-cars hold."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from vlmkit.io.records import Record, dumps, loads
from vlmkit.io.sources import Bytes, PictureError, Reader, Source, is_picture_name, reader_of
from vlmkit.io.tar import MAX_DEPTH
from vlmkit.io.terminal import warn

CAPTION_SUFFIXES = (".txt", ".caption", ".cap")
SIDE_CAR_SUFFIXES = (".json", *CAPTION_SUFFIXES)
CONSTANT = re.compile("NaN|Infinity")  # which Python writes into JSON
KEYS = ("id", "image")  # of our records: what a side-car calls so goes into `sample_id` and `sample_image`
WARNINGS = 10  # of one kind in one shard are printed, the others counted


class Sample(NamedTuple):
    """A picture, and a function that reads what its side-cars say."""

    path: str
    source: Bytes
    fields: Callable[[], Record]


class Unread(NamedTuple):
    """A container, or a part of it, that could not be read."""

    path: str
    error: str
    remedy: str = ""


def is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def read_samples(
    path: str,
    reader: Reader,
    file: Source,
    *,
    skips: Callable[[str], bool] = is_hidden,
    on_other: Callable[[str], object] = lambda name: None,
    has_fields: bool = True,
    depth: int = 1,
) -> Iterator[Sample | Unread]:
    """The pictures, documents and films of a container in its order, also those of containers inside.

    Members of one stem are one sample, wherever they stand: their names are held in memory, no contents. Of two members
    of one name the last one counts, as when a tar is unpacked. Side-cars, or parts of them, that are left out are told
    as warnings when the `fields` of a sample are read; damage is an Unread behind all that could be read. Without
    `has_fields` nothing is read or told of side-cars. `on_other` is called with the names of members of other kinds.
    """
    shard = Shard(path, is_silent=not has_fields)
    damage = shard.collect(reader, file, skips)
    for name, source in shard.members.items():
        inner = reader_of(name)
        if is_picture_name(name) or (is_divided_name(name) and isinstance(source, Source)):
            yield shard.sample(name)
        elif inner is None or not inner.holds_files:
            if not name.lower().endswith(SIDE_CAR_SUFFIXES):
                on_other(name)
        elif not isinstance(source, Source):
            yield Unread(f"{path}/{name}", "a tar file inside that is a link to nothing, or stored without its zeros")
        elif depth >= MAX_DEPTH:
            yield Unread(f"{path}/{name}", f"more than {MAX_DEPTH} tar files inside each other")
        else:
            within = f"{path}/{name}"
            yield from read_samples(
                within, inner, source, skips=skips, on_other=on_other, has_fields=has_fields, depth=depth + 1
            )
    shard.sum_up()
    if damage:
        yield Unread(path, damage, "restore the file; its other members were read" if shard.members else "")


@dataclass
class Shard:
    """The members of one container by name, and the names of each sample by its stem."""

    path: str
    is_silent: bool
    members: dict[str, Bytes] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)
    warnings: Counter[str] = field(default_factory=Counter)
    is_summed_up: bool = False

    def collect(self, reader: Reader, file: Source, skips: Callable[[str], bool]) -> str:
        """Take in all members but those that are skipped. Returns what is damaged."""
        try:
            for name, source in reader.members(file):
                if not skips(name):
                    self.add(name, source)
        except PictureError as error:
            return str(error)
        return ""

    def add(self, name: str, source: Bytes) -> None:
        if name in self.members:
            self.warn(name, "comes twice in the tar file", "only the last one is read, rename the others")
        elif (stem := stem_of(name)) is not None:
            self.samples.setdefault(stem, []).append(name)
        self.members[name] = source

    def sample(self, name: str) -> Sample:
        """The picture called `name`; of a silent shard without fields."""
        fields = dict if self.is_silent else partial(self.fields_of, name)
        return Sample(f"{self.path}/{name}", self.members[name], fields)

    def fields_of(self, picture: str) -> Record:
        """What the side-cars of a picture say: the fields of JSON, and texts as `captions`."""
        sample = self.samples[_stem(picture)]
        pictures = [name for name in sample if _is_subject(name)]
        fields: Record = {}
        captions: list[str] = []
        own = os.path.splitext(picture)[0]
        for name in sorted(sample, key=lambda name: os.path.splitext(name)[0] != own):
            owners = [] if _is_subject(name) else _owners(name, pictures)
            if not owners and not _is_subject(name) and picture == pictures[0]:
                self.warn(name, "of which picture it is cannot be told", "left out, give it the name of its picture")
            if picture not in owners:
                continue
            try:
                if name.lower().endswith(".json"):
                    fields = self._json(name) | fields
                else:
                    captions += filter(None, [_decode(self.members[name].read())])
            except (ValueError, RecursionError, PictureError) as error:
                self.warn(name, str(error))
        if captions:
            known = fields.get("captions")
            known = known if isinstance(known, list) else [known] if isinstance(known, str) else []
            fields["captions"] = known + [caption for caption in captions if caption not in known]
        return _without_keys(fields)

    def _json(self, name: str) -> Record:
        text = _decode(self.members[name].read())
        if not text:
            raise ValueError("it is empty")
        try:
            value = loads(text.encode())
        except ValueError:
            if not CONSTANT.search(text):
                raise
            value = loads(dumps(json.loads(text, parse_constant=lambda name: None)))  # not nested too deep either
            self.warn(name, "it holds NaN or Infinity, which is not JSON", "read as null, correct the file")
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return value

    def warn(self, name: str, what: str, remedy: str = "left out, check the file") -> None:
        self.warnings[remedy] += 1
        if not self.is_silent and (self.warnings[remedy] <= WARNINGS or self.is_summed_up):
            warn(f"{self.path}/{name}: {what}: {remedy}")

    def sum_up(self) -> None:
        """Count the warnings that were not printed; from now on each is."""
        self.is_summed_up = True
        for remedy, count in self.warnings.items():
            if count > WARNINGS and not self.is_silent:
                warn(f"{self.path}: {count - WARNINGS} more members like that: {remedy}")


def is_divided_name(name: str) -> bool:
    """Whether a file of this name is a document or film, whose pages and frames are pictures."""
    return (reader := reader_of(name)) is not None and not reader.holds_files


def _is_subject(name: str) -> bool:
    return is_picture_name(name) or is_divided_name(name)


def stem_of(member: str) -> str | None:
    """The name of the sample that a member is a part of; None for what is neither a picture nor a side-car."""
    is_part = _is_subject(member) or member.lower().endswith(SIDE_CAR_SUFFIXES)
    return _stem(member) if is_part else None


def _stem(member: str) -> str:
    """The name up to the first point of its last part, as webdataset has it."""
    folder, name = os.path.split(member)
    return os.path.join(folder, name.split(".")[0])


def _owners(side_car: str, pictures: list[str]) -> list[str]:
    """Which `pictures` of a sample a side-car is about; none where that cannot be told.

    Those that it shares the longest name with (`a.b.jpg` for `a.b.json` and `a.b.c.json`), else all if it has the name
    of the sample (`a.json` for `a.left.jpg` and `a.right.jpg`).
    """
    name = os.path.splitext(side_car)[0]
    stems = {picture: os.path.splitext(picture)[0] for picture in pictures}
    shared = [stem for stem in stems.values() if f"{name}.".startswith(f"{stem}.")]
    if not shared:
        return pictures if name == _stem(side_car) else []
    longest = max(shared, key=len)
    return [picture for picture, stem in stems.items() if stem == longest]


def _decode(data: bytes) -> str:
    """Text in UTF-8, -16 or -32, with or without a byte order mark. Raises ValueError for what is none of them."""
    try:
        text = data.decode(json.detect_encoding(data)).strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{data[error.start]:02x} at {error.start})") from None
    if "\0" in text:
        raise ValueError("not a text")
    return text


def _without_keys(fields: Record) -> Record:
    """`fields` with those that our own records have under the names of KEYS renamed."""
    for key in KEYS:
        name = f"sample_{key}"
        while name in fields:
            name += "_"
        fields = {name if field == key else field: value for field, value in fields.items()}
    return fields
