"""duplicates: groups of pictures that are copies of each other, or nearly so.

Files with the same bytes are one picture. Then pairs are joined from the nearest to the farthest, two groups only if
every pair across them reaches the threshold (complete linkage): a chain of small steps does not end in one group.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vlmkit.index import Index
from vlmkit.io.records import Record
from vlmkit.io.sources import PictureError, open_source

if TYPE_CHECKING:
    import numpy as np

ROWS = 1024  # of a block of the similarity matrix
COLUMNS = 8192
SLACK = 1e-6  # float32 makes 0.9999999 of the cosine of a vector with itself
MOST_PAIRS = 10_000_000  # that wait to be joined, 120 MB; more are joined in turns


def duplicates(index: Index, threshold: float, among: "np.ndarray | None" = None) -> Iterator[Record]:
    """One record a group: `ids`, `images` (both largest picture first) and `score`, the lowest cosine inside it.

    Groups come by descending score, then by their first id. Records of one and the same picture are no duplicates;
    copies score 1. `among` are the slots to look at (sorted int64).
    """
    import numpy as np

    slots = index.live() if among is None else among
    copies = _copies(index, slots)
    first = np.array([members[0] for members in copies], np.int64)
    vectors = Vectors(index.vectors, first)
    groups: list[Record] = []
    for members in linked(vectors, threshold):
        records = [index.record(int(slot)) for node in members for slot in copies[node]]
        if len({record.get("image") or record["id"] for record in records}) > 1:
            records.sort(key=_size_then_id)
            images = list(dict.fromkeys(record["image"] for record in records if record.get("image")))
            score = round(min(1.0, vectors.lowest(members, members)), 6)
            groups.append({"ids": [record["id"] for record in records], "images": images, "score": score})
    yield from sorted(groups, key=lambda group: (-group["score"], group["ids"]))


def _size_then_id(record: Record) -> tuple[float, float, str]:
    def number(name: str) -> float:
        value = record.get(name)
        return value if isinstance(value, int | float) else 0

    return -number("width") * number("height"), -number("bytes"), str(record["id"])


def _copies(index: Index, slots: "np.ndarray") -> list[list[int]]:
    """`slots` in lists of those with the same picture: one path, or files of the same bytes. Text stands alone."""
    import numpy as np

    wanted = np.zeros(index.state.slots, bool)
    wanted[slots] = True
    by_path: dict[str, list[int]] = {}
    nodes = []
    for slot, record in index.records():
        if not wanted[slot]:
            continue
        image = record.get("image")
        members = by_path.setdefault(image, []) if isinstance(image, str) else []
        if not members:
            nodes.append(members)
        members.append(slot)
    by_content: dict[bytes, list[int]] = {}
    for path, content in _contents(by_path):
        members = by_content.setdefault(content, by_path[path])
        if members is not by_path[path]:
            members += by_path[path]
            by_path[path].clear()
    return [sorted(members) for members in nodes if members]


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

    def __init__(self, stored: "np.ndarray", rows: "np.ndarray") -> None:
        self._stored = stored
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: "slice | list[int]") -> "np.ndarray":
        import numpy as np

        found = self._stored[self._rows[some]].astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def lowest(self, some: list[int], others: list[int]) -> float:
        """The lowest cosine of a row of `some` with one of `others`."""
        right = self[others].T
        return min(float((self[some[i : i + ROWS]] @ right).min()) for i in range(0, len(some), ROWS))


def linked(
    vectors: Vectors, threshold: float, block: tuple[int, int] = (ROWS, COLUMNS), most: int = MOST_PAIRS
) -> Iterator[list[int]]:
    """Groups of rows (ascending, single rows too): complete linkage of the pairs whose cosine reaches `threshold`.

    Pairs are taken by descending cosine, then by row numbers. Where more than `most` wait they are joined before
    the rest is looked at: memory stays bounded, and the groups keep their promise.
    """
    threshold -= SLACK
    links = _Links(vectors, threshold)
    waiting: list[np.ndarray] = []
    count = 0
    for pairs in _pairs(vectors, threshold, block):
        fresh = links.undecided(pairs)
        waiting.append(fresh)
        count += len(fresh)
        if count > most:
            links.join(waiting)
            waiting, count = [], 0
    links.join(waiting)
    yield from links.groups()


def _pairs(vectors: Vectors, threshold: float, block: tuple[int, int]) -> "Iterator[np.ndarray]":
    """Pairs of rows with their cosines, a block of the upper triangle at a time: fields score, a, b; a < b."""
    import numpy as np

    high, wide = block
    for top in range(0, len(vectors), high):
        rows = vectors[top : top + high]
        for left in range(top, len(vectors), wide):
            cosines = rows @ vectors[left : left + wide].T  # (rows, columns)
            a, b = np.nonzero(cosines >= threshold)
            found = np.empty(len(a), [("score", "<f4"), ("a", "<i4"), ("b", "<i4")])
            found["score"], found["a"], found["b"] = cosines[a, b], a + top, b + left
            yield found[found["a"] < found["b"]]


class _Links:
    """Rows joined into groups, and groups known to be too far apart."""

    def __init__(self, vectors: Vectors, threshold: float) -> None:
        import numpy as np

        self._vectors = vectors
        self._threshold = threshold
        self._group = np.arange(len(vectors))  # of each row: the lowest row of its group
        self._members: dict[int, list[int]] = {}
        self._apart: dict[int, set[int]] = {}

    def undecided(self, pairs: "np.ndarray") -> "np.ndarray":
        """The pairs that do not lie in one group already."""
        return pairs[self._group[pairs["a"]] != self._group[pairs["b"]]]

    def join(self, waiting: "list[np.ndarray]") -> None:
        import numpy as np

        if not waiting:
            return
        pairs = np.concatenate(waiting)
        for i in np.lexsort((pairs["b"], pairs["a"], -pairs["score"])):
            a, b = sorted((int(self._group[pairs["a"][i]]), int(self._group[pairs["b"][i]])))
            if a != b and b not in self._apart.get(a, ()):
                self._try(a, b)

    def _try(self, a: int, b: int) -> None:
        """Make groups `a` and `b` one, if all their pairs reach the threshold; remember if not."""
        ours, theirs = self._members.get(a, [a]), self._members.get(b, [b])
        if len(ours) * len(theirs) > 1 and self._vectors.lowest(ours, theirs) < self._threshold:
            self._apart.setdefault(a, set()).add(b)
            self._apart.setdefault(b, set()).add(a)
            return
        self._group[theirs] = a
        self._members[a] = [*ours, *theirs]
        self._members.pop(b, None)
        far = self._apart.pop(b, set())
        for other in far:
            self._apart[other].discard(b)
            self._apart[other].add(a)
        if far:
            self._apart.setdefault(a, set()).update(far)

    def groups(self) -> Iterator[list[int]]:
        for row, group in enumerate(self._group):
            if row == group:
                yield sorted(self._members.get(row, [row]))
