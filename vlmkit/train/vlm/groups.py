"""Groups of samples about the same pictures, tokenized where they are needed: a first pass only counts their tokens.

The pass finds which samples are refused or too long, and how many tokens each segment has. It runs in several
processes, and what it found is kept beside the rows (see `train.data.cache`), for later runs and other processes.
"""

import json
import multiprocessing
from array import array
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from xxhash import xxh3_64_hexdigest

from vlmkit.io.files import atomic_write, lock
from vlmkit.io.records import Failed
from vlmkit.io.sources import Bytes
from vlmkit.io.terminal import Failures, progress
from vlmkit.models.chat.template import TemplateRefusal
from vlmkit.train.data.cache import key_of
from vlmkit.train.data.mixture import Mixture, Ragged
from vlmkit.train.data.report import Counts
from vlmkit.train.data.samples import Dialogue, Preference, Turn
from vlmkit.train.data.store import RowFile
from vlmkit.train.vlm.packing import Packer
from vlmkit.train.vlm.tokenize import Encode, TokenizedSample

VERSION = 2  # of the form of what is kept
REFUSED = "chat template refuses them"
TOO_LONG = "pictures or reply do not fit into max-length"
CUT = "cut"
ARRAYS = "segments", "tokens", "samples", "pictures"
AT_ONCE = 256  # groups that a process counts
ALONE = 8 * AT_ONCE  # groups that are not worth other processes


@dataclass(frozen=True, slots=True)
class Group:
    """Samples about the same pictures."""

    name: str  # the id of the first sample
    pictures: tuple[Bytes, ...]
    samples: list[TokenizedSample]
    mirror: bool  # whether the pictures may be mirrored


class Event(NamedTuple):
    """What became of a row: REFUSED, TOO_LONG or CUT."""

    row: int
    id: str
    what: str
    detail: str = ""


@dataclass(frozen=True)
class TokenizedGroups(Sequence[Group]):
    """The groups of `reading` that have samples; each is read and tokenized when it is asked for.

    `numbers` are the rows of all groups, `length` the most tokens of a sample. `segments` are the tokens of each
    segment (see `Packer`) of a group, and `sizes` the samples that it holds.
    """

    reading: Mixture[Any]
    numbers: Ragged
    encode: Encode
    packer: Packer
    length: int
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # the groups that have samples
    segments: Ragged = field(default_factory=lambda: Ragged.of(np.zeros(0, int), np.zeros(0, int)))
    sizes: Ragged = field(default_factory=lambda: Ragged.of(np.zeros(0, int), np.zeros(0, int)))
    pictures: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # how many each group has

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.group(int(self.places[place]))[0]

    def group(self, number: int) -> tuple[Group, list[Event]]:
        """A group by its number among all, and what became of its rows."""
        numbers = self.numbers[number]
        rows = [self.reading.rows[row] for row in numbers]
        samples, events = [], []
        for row, place in zip(rows, numbers, strict=True):
            kept, event = self._tokenized(row)
            samples += kept
            events += [Event(place, row.id, *event)] if event else []
        return _group(rows, samples), events

    def without_samples(self) -> Iterator[Group]:
        """The groups with their pictures alone."""
        return (_group([self.reading.rows[row] for row in self.numbers[place]], []) for place in self.places)

    def _tokenized(self, row: Dialogue | Preference) -> tuple[list[TokenizedSample], tuple[str, str] | None]:
        try:
            whole = [self.encode(dialogue) for dialogue in _dialogues(row)]
        except TemplateRefusal as error:
            return [], (REFUSED, str(error))
        fitting = [[self.packer.truncate(turns, self.length) for turns in dialogue] for dialogue in whole]
        # Of a dialogue the first turns are enough; of a preference both sides are needed.
        kept = [[turns for turns in dialogue if turns is not None] for dialogue in fitting]
        if not all(kept):
            return [], (TOO_LONG, "")
        pairs = zip(chain.from_iterable(whole), chain.from_iterable(fitting), strict=True)
        is_cut = any(before is not after for before, after in pairs)
        return [*chain.from_iterable(kept)], (CUT, "") if is_cut else None


def _group(rows: list[Any], samples: list[TokenizedSample]) -> Group:
    return Group(rows[0].id, rows[0].pictures, samples, all(getattr(row, "mirror", False) for row in rows))


def _dialogues(row: Dialogue | Preference) -> list[Dialogue]:
    if isinstance(row, Dialogue):
        return [row]
    replies = row.chosen, row.rejected
    return [Dialogue(row.id, row.pictures, (Turn(row.question, reply),), row.system) for reply in replies]


@dataclass(frozen=True, slots=True)
class Counted:
    """What the first pass found: by group the number of segments, of these tokens and samples, and of pictures."""

    segments: np.ndarray  # (G,)
    tokens: np.ndarray  # (S,)
    samples: np.ndarray  # (S,)
    pictures: np.ndarray  # (G,)
    events: list[Event]


def tokenized_groups(
    reading: Mixture[Any], encode: Encode, packer: Packer, length: int, workers: int, failures: Failures, quiet: bool
) -> TokenizedGroups:
    """The groups of `reading`; samples that are refused, or of more than `length` tokens, are reported and left out.

    Preferences are drawn one by one, dialogues about the same pictures together.
    """
    rows = np.arange(len(reading.rows))
    alone = isinstance(reading.rows[0], Preference)
    all_groups = TokenizedGroups(reading, Ragged(rows, rows + 1) if alone else reading.groups, encode, packer, length)
    found = _counted(all_groups, workers, quiet)
    for _ in failures.filter_failures(_told(found, reading)):
        pass
    places = np.flatnonzero(found.segments)
    lengths = found.segments[places]
    segments, sizes = Ragged.of(lengths, found.tokens), Ragged.of(lengths, found.samples)
    shown = found.pictures[places]
    return TokenizedGroups(reading, all_groups.numbers, encode, packer, length, places, segments, sizes, shown)


def _told(found: Counted, reading: Mixture[Any]) -> Iterator[Failed | None]:
    for event in found.events:
        counts: Counts = reading.table[reading.sources[event.row]]
        if event.what == CUT:
            counts.cut += 1
            continue
        counts.drop_sample(event.what)
        refused = event.what == REFUSED
        yield Failed(event.id, None, f"the model's {REFUSED} ({event.detail})" if refused else f"its {TOO_LONG}")
    yield from (None for _ in found.segments)


def _counted(groups: TokenizedGroups, workers: int, quiet: bool) -> Counted:
    """The first pass, or what an earlier one found."""
    rows = groups.reading.rows
    folder = rows.folder if isinstance(rows, RowFile) and rows.folder.is_dir() else None
    path = folder / f"tokens-{_key(groups)}.npz" if folder else None
    waiting = lock(folder) if folder else nullcontext()
    with waiting:
        with suppress(OSError, ValueError, KeyError, BadZipFile), np.load(path or "") as known:
            events = [Event(*event) for event in json.loads(known["events"].tobytes())]
            return Counted(**{name: known[name] for name in ARRAYS}, events=events)
        found = _count(groups, workers, quiet)
        if path:
            told = np.frombuffer(json.dumps(found.events).encode(), np.uint8)
            with suppress(OSError), atomic_write(path, durable=False) as file:
                np.savez(file, events=told, **{name: getattr(found, name) for name in ARRAYS})
    return found


def _key(groups: TokenizedGroups) -> str:
    """A name for what decides the counts: rows, groups, tokenizer, template, lengths."""
    words = groups.encode.tokenizer
    backend = getattr(words, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else json.dumps(words.get_vocab(), sort_keys=True)
    parts = groups.numbers.values, groups.numbers.ends, groups.reading.columns["at"]
    drawn = (xxh3_64_hexdigest(part.tobytes()) for part in parts)
    fingerprints = [counts.fingerprint for counts in groups.reading.table]
    names = type(groups.encode).__name__, type(words).__name__, words.chat_template, str(words.special_tokens_map)
    return key_of([VERSION, *drawn, fingerprints, vocabulary, names, str(groups.packer), groups.length])


_counting: TokenizedGroups | None = None  # in a process that counts


def _count(groups: TokenizedGroups, workers: int, quiet: bool) -> Counted:
    total = len(groups.numbers)
    starts = range(0, total, AT_ONCE)
    if workers > 1 and total > ALONE:
        with multiprocessing.get_context("fork").Pool(workers, _begin, (groups,)) as pool:
            return _joined(pool.imap(_count_some, starts), total, quiet)
    return _joined((_counted_from(groups, start) for start in starts), total, quiet)


def _begin(groups: TokenizedGroups) -> None:
    global _counting
    _counting = groups


def _count_some(start: int) -> list[Any]:
    assert _counting is not None
    return _counted_from(_counting, start)


def _counted_from(groups: TokenizedGroups, start: int) -> list[tuple[list[tuple[int, int]], int, list[Event]]]:
    """Of AT_ONCE groups: (tokens, samples) of each segment, the number of pictures, and the events."""
    found = []
    for number in range(start, min(start + AT_ONCE, len(groups.numbers))):
        group, events = groups.group(number)
        sizes = groups.packer.sizes(group.samples) if group.samples else []
        found.append((sizes, len(group.pictures), events))
    return found


def _joined(results: Iterator[Any], total: int, quiet: bool) -> Counted:
    segments, pictures = np.zeros((2, total), np.int32)
    sizes = array("i")
    events: list[Event] = []
    counted: Any = progress(chain.from_iterable(results), quiet=quiet, unit="groups")
    for number, (found, shown, told) in enumerate(counted):
        segments[number], pictures[number] = len(found), shown
        sizes.extend(chain.from_iterable(found))
        events += told
    tokens, samples = np.array(sizes, np.int32).reshape(-1, 2).T
    return Counted(segments, tokens, samples, pictures, events)
