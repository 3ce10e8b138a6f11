"""Groups of pictures that are copies of each other, or nearly so.

Names of one file are one picture, and so are files with the same bytes. Then pairs are joined from the nearest to the
farthest, two groups only if every pair across them reaches the threshold (complete linkage): a chain of small steps
does not end in one group. Where both files are there the pictures decide (see likeness), else the vectors. Of many rows
near ones alone are compared (see neighbours).
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vlmkit.index import Index
from vlmkit.io.records import Record
from vlmkit.io.sources import PictureError, Source, open_source
from vlmkit.search.likeness import Likeness
from vlmkit.search.neighbours import all_blocks, blocking

ROWS = 1024  # of a block of the similarity matrix
COLUMNS = 8192
SLACK = 1e-6  # float32 makes 0.9999999 of the cosine of a vector with itself
MAX_PAIRS = 10_000_000  # that wait to be joined, 120 MB; more are joined in turns
DRAWN = 1000  # rows whose pairs tell the recall
PAIR = np.dtype([("score", "<f4"), ("a", "<i4"), ("b", "<i4")])
COPY_NAME = re.compile(r"\bcopy\b|\bkopie\b|\bcopie\b|\bcopia\b|[ _-]\(?\d{1,2}\)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Rows:
    """`slots` of each distinct picture, its `paths` (None without a picture), and the `other_names` of its files.

    `missing` is how many pictures cannot be opened.
    """

    slots: list[list[int]]
    paths: list[str | None]
    other_names: dict[str, list[str]]
    missing: int


def duplicates(
    index: Index,
    threshold: float,
    among: np.ndarray | None = None,
    *,
    prefer: Sequence[str] = (),
    workers: int = 1,
    exact: bool = False,
    note: Callable[[str], None] = lambda message: None,
) -> list[Record]:
    """One record a group: `ids`, `images` (the one to keep first), `score`, the lowest inside it, and the fields below.

    `kept` is the first of `images` and `why` it is; `files` has the facts of each, `same_file` the other names of those
    that have several. Groups come by descending score, then by their first id. Records of one and the same picture are
    no duplicates; copies score 1. `among` are the slots to look at (sorted int64). Vectors too many and too spread for
    all near ones to be compared are compared in part unless `exact`. `note` gets a message with the recall there, and
    one where pictures are not there to be compared.
    """
    rows = _distinct(index, index.live() if among is None else among)
    if rows.missing:
        note(f"{rows.missing} pictures cannot be opened: their vectors decide what is a copy of them")
    vectors = Vectors(index.vectors, np.array([slots[0] for slots in rows.slots], np.int64), exact, note)
    similarity = _Similarity(vectors, Likeness(rows.paths, threshold, workers))
    groups: list[Record] = []
    for group in linked(similarity, threshold):
        if len(group) == 1 and len(rows.slots[group[0]]) == 1:
            continue
        records = [index.record(int(slot)) for row in group for slot in rows.slots[row]]
        if len({record.get("image") or record["id"] for record in records}) > 1:
            score = round(min(1.0, similarity.lowest(group, group)), 6)
            groups.append(_describe(records, score, rows.other_names, prefer))
    return sorted(groups, key=lambda group: (-group["score"], group["ids"]))


def survey(index: Index, among: np.ndarray | None = None) -> Record:
    """What `duplicates` would look at: numbers of `records`, `pictures` that can be opened, and `missing` ones."""
    slots = index.live() if among is None else among
    rows = _distinct(index, slots)
    return {"records": len(slots), "pictures": sum(path is not None for path in rows.paths), "missing": rows.missing}


def _describe(records: list[Record], score: float, other_names: dict[str, list[str]], prefer: Sequence[str]) -> Record:
    keys = {id(record): _rank(record, prefer) for record in records}
    records.sort(key=lambda record: [value for _, value in keys[id(record)]])
    images = list(dict.fromkeys(record["image"] for record in records if record.get("image")))
    group: Record = {"ids": [record["id"] for record in records], "images": images, "score": score}
    if images:
        first, *rest = (keys[id(record)] for record in records if record.get("image"))
        second = next((key for key in rest if key[-1] != first[-1]), first)
        facts = ("bytes", "width", "height", "mtime")
        by_image = {record["image"]: record for record in reversed(records) if record.get("image")}
        group["kept"] = images[0]
        group["why"] = next((why for (why, ours), (_, theirs) in zip(first, second, strict=True) if ours != theirs), "")
        group["files"] = [
            {"image": image} | {name: by_image[image][name] for name in facts if name in by_image[image]}
            for image in images
        ]
        same = {image: other_names[image] for image in images if image in other_names}
        group |= {"same_file": same} if same else {}
    return group


def _rank(record: Record, prefer: Sequence[str]) -> list[tuple[str, Any]]:
    """What decides whether a record is kept, each with its name; the lowest value wins."""
    name = str(record.get("image") or record["id"])
    width, height, size, time = (
        value if isinstance(value := record.get(fact), int | float) else 0
        for fact in ("width", "height", "bytes", "mtime")
    )
    stem = os.path.splitext(os.path.basename(name))[0]
    return [
        ("preferred folder", not any(name.startswith(os.path.join(os.path.abspath(one), "")) for one in prefer)),
        ("most pixels", -width * height),
        ("most bytes", -size),
        ("not named as a copy", bool(COPY_NAME.search(stem))),
        ("oldest", time),
        ("first name", str(record["id"])),
    ]


def _distinct(index: Index, slots: np.ndarray) -> _Rows:
    """`slots` in lists of those with the same picture: one path, or files of the same bytes. Texts are lists of one.

    Of several names of one file (links, hard links, other ways to it) only one is there: the one without links, else
    the first.
    """
    wanted = np.zeros(index.state.slots, bool)
    wanted[slots] = True
    by_picture: dict[str | int, list[int]] = defaultdict(list)
    for slot, record in index.records():
        if wanted[slot]:
            image = record.get("image")
            by_picture[image if isinstance(image, str) else slot].append(slot)
    files: dict[object, list[str]] = defaultdict(list)
    sources: dict[str, Any] = {}
    for path in [path for path in by_picture if isinstance(path, str)]:
        try:
            sources[path] = open_source(path)
            files[_file_key(sources[path]) or path].append(path)
        except PictureError:  # those by URL, too
            continue
    other_names = {}
    for names in files.values():
        if len(names) > 1:
            first, *others = sorted(names, key=lambda name: (os.path.realpath(name) != name, name))
            other_names[first] = others
            for name in others:
                del by_picture[name], sources[name]
    by_content: dict[bytes, str] = {}
    for path, content in _contents(sources):
        first = by_content.setdefault(content, path)
        if first != path:
            by_picture[first] += by_picture.pop(path)
            del sources[path]
    missing = sum(isinstance(picture, str) and picture not in sources for picture in by_picture)
    paths = [picture if isinstance(picture, str) and picture in sources else None for picture in by_picture]
    return _Rows([sorted(members) for members in by_picture.values()], paths, other_names, missing)


def _file_key(source: Any) -> object:
    """What is the same for all names of one file, or of one member of a container."""
    if not isinstance(source, Source):
        return None
    try:
        found = os.stat(source.path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, source.offset, source.size


def _contents(sources: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Each file that shares its size with another one, and the digest of its bytes. What cannot be read is left out."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path, source in sources.items():
        by_size[source.size].append(path)
    for same in by_size.values():
        for path in same if len(same) > 1 else []:
            try:
                yield path, hashlib.sha256(sources[path].read()).digest()
            except PictureError:
                continue


class Similarity(Protocol):
    """Scores of pairs of rows."""

    def __len__(self) -> int: ...

    def pairs(self, threshold: float, block: tuple[int, int]) -> Iterator[np.ndarray]:
        """Pairs of rows a < b that reach the threshold, some at a time (see PAIR)."""

    def lowest(self, some: list[int], others: list[int]) -> float:
        """The lowest score of a row of `some` with one of `others`."""


class Vectors:
    """Rows of a stored array as unit vectors (float32), read when they are needed.

    `note` gets the recall where pairs are looked for among near rows and some of those are left out (not if `exact`).
    """

    def __init__(
        self,
        stored: np.ndarray,
        rows: np.ndarray,
        exact: bool = False,
        note: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._stored = stored
        self._rows = rows
        self._exact = exact
        self._note = note

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: slice | list[int] | np.ndarray) -> np.ndarray:
        found = self._stored[self._rows[some]].astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def lowest(self, some: list[int], others: list[int]) -> float:
        """The lowest cosine of a row of `some` with one of `others`."""
        right = self[others].T
        return min(float((self[some[i : i + ROWS]] @ right).min()) for i in range(0, len(some), ROWS))

    def pairs(self, threshold: float, block: tuple[int, int]) -> Iterator[np.ndarray]:
        """Pairs of rows a < b with their cosines, those of a block at a time; some may come twice."""
        cells = None if self._exact else blocking(self, max(0.0, 2 - 2 * threshold) ** 0.5)
        if cells is None or cells.is_complete:
            blocks = all_blocks(len(self), *block) if cells is None else cells.blocks(self, *block)
            yield from (self._within(left, right, threshold) for left, right in blocks)
            return
        drawn = np.sort(np.random.default_rng(0).choice(len(self), DRAWN, replace=False))
        seen: list[np.ndarray] = []
        for left, right in cells.blocks(self, *block):
            found = self._within(left, right, threshold)
            seen.append(found[np.isin(found["a"], drawn) | np.isin(found["b"], drawn)])
            yield found
        every = range(0, len(self), block[1])
        there = [self._within(drawn, np.arange(i, min(i + block[1], len(self))), threshold) for i in every]
        self._note(
            f"near vectors alone are compared, which found {_different(seen):,} of the {_different(there):,} pairs of "
            f"{DRAWN:,} rows drawn at random: --exact compares all pairs"
        )

    def _within(self, left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
        """Pairs of a row of `left` with one of `right` that reach the threshold (see PAIR)."""
        cosines = self[left] @ self[right].T
        reached = np.flatnonzero(cosines >= threshold)  # which is quicker than nonzero
        i, j = np.divmod(reached, len(right))
        found = np.empty(len(i), PAIR)
        found["score"] = cosines[i, j]
        found["a"], found["b"] = np.minimum(left[i], right[j]), np.maximum(left[i], right[j])
        return found[found["a"] < found["b"]]


def _different(pairs: list[np.ndarray]) -> int:
    return len(np.unique(np.concatenate(pairs)[["a", "b"]]))


class _Similarity:
    """By pictures where both are there, else by vectors."""

    def __init__(self, vectors: Vectors, likeness: Likeness) -> None:
        self._vectors, self._likeness = vectors, likeness

    def __len__(self) -> int:
        return len(self._vectors)

    def pairs(self, threshold: float, block: tuple[int, int]) -> Iterator[np.ndarray]:
        scores = self._likeness.scores.items()
        yield np.array([(score, a, b) for (a, b), score in scores], PAIR)
        seen = self._likeness.rows
        if not seen.all():
            for found in self._vectors.pairs(threshold, block):
                yield found[~(seen[found["a"]] & seen[found["b"]])]

    def lowest(self, some: list[int], others: list[int]) -> float:
        seen = self._likeness.rows
        left, right = ([row for row in rows if seen[row]] for rows in (some, others))
        unseen = [row for row in some if not seen[row]], [row for row in others if not seen[row]]
        found = [self._likeness.lowest(left, right)]
        found += [self._vectors.lowest(unseen[0], others)] if unseen[0] else []
        found += [self._vectors.lowest(left, unseen[1])] if left and unseen[1] else []
        return min(found)


def linked(
    similarity: Similarity, threshold: float, block: tuple[int, int] = (ROWS, COLUMNS), max_pairs: int = MAX_PAIRS
) -> Iterator[list[int]]:
    """Groups of rows (ascending, single rows too): complete linkage of the pairs whose score reaches `threshold`.

    Pairs are taken by descending score, then by row numbers. Where more than `max_pairs` wait they are joined before
    the rest is looked at: memory stays bounded, and every pair in a group still reaches the threshold.
    """
    threshold -= SLACK
    links = _Links(similarity, threshold)
    waiting, count = [], 0
    for pairs in similarity.pairs(threshold, block):
        waiting.append(links.undecided(pairs))
        count += len(waiting[-1])
        if count > max_pairs:
            links.join(waiting)
            waiting, count = [], 0
    links.join(waiting)
    yield from links.groups()


class _Links:
    """Rows joined into groups, and groups known to be too far apart."""

    def __init__(self, similarity: Similarity, threshold: float) -> None:
        self._similarity = similarity
        self._threshold = threshold
        self._group = np.arange(len(similarity))  # of each row: the lowest row of its group
        self._members: dict[int, list[int]] = {}
        self._apart: dict[int, set[int]] = defaultdict(set)

    def undecided(self, pairs: np.ndarray) -> np.ndarray:
        """The pairs that do not lie in one group already."""
        return pairs[self._group[pairs["a"]] != self._group[pairs["b"]]]

    def join(self, waiting: list[np.ndarray]) -> None:
        pairs = np.concatenate([np.empty(0, PAIR), *waiting])
        for i in np.lexsort((pairs["b"], pairs["a"], -pairs["score"])):
            a, b = sorted((int(self._group[pairs["a"][i]]), int(self._group[pairs["b"][i]])))
            if a != b and b not in self._apart.get(a, ()):
                self._join_groups(a, b)

    def _join_groups(self, a: int, b: int) -> None:
        """Make groups `a` and `b` one, if all their pairs reach the threshold; remember if not."""
        ours, theirs = self._members.get(a, [a]), self._members.get(b, [b])
        if len(ours) * len(theirs) > 1 and self._similarity.lowest(ours, theirs) < self._threshold:
            self._apart[a].add(b)
            self._apart[b].add(a)
            return
        self._group[theirs] = a
        self._members[a] = [*ours, *theirs]
        self._members.pop(b, None)
        for other in self._apart.pop(b, ()):
            self._apart[other].discard(b)
            self._apart[other].add(a)
            self._apart[a].add(other)

    def groups(self) -> Iterator[list[int]]:
        for row, group in enumerate(self._group):
            if row == group:
                yield sorted(self._members.get(row, [row]))
