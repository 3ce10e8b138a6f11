"""Groups of pictures that are copies of each other, or nearly so.

Files with the same bytes are one picture. Then pairs are joined from the nearest to the farthest, two groups only if
every pair across them reaches the threshold (complete linkage): a chain of small steps does not end in one group.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from vlmkit.index import Index
from vlmkit.io.records import Record
from vlmkit.io.sources import PictureError, open_source

ROWS = 1024  # of a block of the similarity matrix
COLUMNS = 8192
SLACK = 1e-6  # float32 makes 0.9999999 of the cosine of a vector with itself
MAX_PAIRS = 10_000_000  # that wait to be joined, 120 MB; more are joined in turns
PAIR = np.dtype([("score", "<f4"), ("a", "<i4"), ("b", "<i4")])


def duplicates(index: Index, threshold: float, among: np.ndarray | None = None) -> list[Record]:
    """One record a group: `ids`, `images` (both largest picture first) and `score`, the lowest cosine inside it.

    Groups come by descending score, then by their first id. Records of one and the same picture are no duplicates;
    copies score 1. `among` are the slots to look at (sorted int64).
    """
    copies = _copies(index, index.live() if among is None else among)
    vectors = Vectors(index.vectors, np.array([slots[0] for slots in copies], np.int64))
    groups: list[Record] = []
    for rows in linked(vectors, threshold):
        records = [index.record(int(slot)) for row in rows for slot in copies[row]]
        if len({record.get("image") or record["id"] for record in records}) > 1:
            records.sort(key=_size_then_id)
            images = list(dict.fromkeys(record["image"] for record in records if record.get("image")))
            score = round(min(1.0, vectors.lowest(rows, rows)), 6)
            groups.append({"ids": [record["id"] for record in records], "images": images, "score": score})
    return sorted(groups, key=lambda group: (-group["score"], group["ids"]))


def _size_then_id(record: Record) -> tuple[float, float, str]:
    width, height, size = (
        value if isinstance(value := record.get(name), int | float) else 0 for name in ("width", "height", "bytes")
    )
    return -width * height, -size, str(record["id"])


def _copies(index: Index, slots: np.ndarray) -> list[list[int]]:
    """`slots` in lists of those with the same picture: one path, or files of the same bytes. Texts are lists of one."""
    wanted = np.zeros(index.state.slots, bool)
    wanted[slots] = True
    by_picture: dict[str | int, list[int]] = defaultdict(list)
    for slot, record in index.records():
        if wanted[slot]:
            image = record.get("image")
            by_picture[image if isinstance(image, str) else slot].append(slot)
    by_content: dict[bytes, str] = {}
    for path, content in _contents([path for path in by_picture if isinstance(path, str)]):
        first = by_content.setdefault(content, path)
        if first != path:
            by_picture[first] += by_picture.pop(path)
    return [sorted(members) for members in by_picture.values()]


def _contents(paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Each file that shares its size with another one, and the digest of its bytes. What cannot be read is left out."""
    by_size: dict[int, list[str]] = {}
    for path in paths:
        try:
            by_size.setdefault(open_source(path).size, []).append(path)
        except PictureError:  # those by URL, too
            continue
    for same in by_size.values():
        for path in same if len(same) > 1 else []:
            try:
                yield path, hashlib.sha256(open_source(path).read()).digest()
            except PictureError:
                continue


class Vectors:
    """Rows of a stored array as unit vectors (float32), read when they are needed."""

    def __init__(self, stored: np.ndarray, rows: np.ndarray) -> None:
        self._stored = stored
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: slice | list[int]) -> np.ndarray:
        found = self._stored[self._rows[some]].astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def lowest(self, some: list[int], others: list[int]) -> float:
        """The lowest cosine of a row of `some` with one of `others`."""
        right = self[others].T
        return min(float((self[some[i : i + ROWS]] @ right).min()) for i in range(0, len(some), ROWS))


def linked(
    vectors: Vectors, threshold: float, block: tuple[int, int] = (ROWS, COLUMNS), max_pairs: int = MAX_PAIRS
) -> Iterator[list[int]]:
    """Groups of rows (ascending, single rows too): complete linkage of the pairs whose cosine reaches `threshold`.

    Pairs are taken by descending cosine, then by row numbers. Where more than `max_pairs` wait they are joined before
    the rest is looked at: memory stays bounded, and every pair in a group still reaches the threshold.
    """
    threshold -= SLACK
    links = _Links(vectors, threshold)
    waiting, count = [], 0
    for pairs in _pairs(vectors, threshold, block):
        waiting.append(links.undecided(pairs))
        count += len(waiting[-1])
        if count > max_pairs:
            links.join(waiting)
            waiting, count = [], 0
    links.join(waiting)
    yield from links.groups()


def _pairs(vectors: Vectors, threshold: float, block: tuple[int, int]) -> Iterator[np.ndarray]:
    """Pairs of rows a < b with their cosines, a block of the upper triangle at a time."""
    height, width = block
    for top in range(0, len(vectors), height):
        rows = vectors[top : top + height]
        for left in range(top, len(vectors), width):
            cosines = rows @ vectors[left : left + width].T  # (rows, columns)
            a, b = np.nonzero(cosines >= threshold)
            found = np.empty(len(a), PAIR)
            found["score"], found["a"], found["b"] = cosines[a, b], a + top, b + left
            yield found[found["a"] < found["b"]]


class _Links:
    """Rows joined into groups, and groups known to be too far apart."""

    def __init__(self, vectors: Vectors, threshold: float) -> None:
        self._vectors = vectors
        self._threshold = threshold
        self._group = np.arange(len(vectors))  # of each row: the lowest row of its group
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
        if len(ours) * len(theirs) > 1 and self._vectors.lowest(ours, theirs) < self._threshold:
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
