"""Which rows must be compared so that no pair within a radius is missed, without comparing all of them.

Rows lie in the Voronoi cells of centroids. Where a pair is parted by the plane between two centroids, its nearer row is
no farther from that plane than half the length of the pair. So a cell is compared with itself and with its guests: the
rows of other cells whose distance from the plane is at most half the radius.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SEED = 0
ROWS_A_CENTROID = 32  # that it is fitted to
ROUNDS = 5  # of fitting
PROBE_ROWS = 4096  # drawn to tell how many comparisons there will be
BLOCK = 4096  # rows sorted into cells at a time
MAX_COMPARED = 10_000  # rows that one is compared with, on average
MARGINS = 32  # steps in which the margin is made smaller
ROUNDING = 1e-4  # of a radius, for float32

Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


class Points(Protocol):
    """N points of D numbers (float32), read when they are needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, some: slice | np.ndarray) -> np.ndarray: ...


def all_blocks(count: int, height: int, width: int) -> Blocks:
    """`count` rows to compare with each other, `height` x `width` at most; no pair comes twice but within a block."""
    for top in range(0, count, height):
        for left in range(top, count, width):
            yield np.arange(top, min(top + height, count)), np.arange(left, min(left + width, count))


@dataclass(frozen=True, slots=True)
class Blocking:
    """Cells around `centroids` (K x D float32), with `gaps` between them, and the `margin` up to which rows are guests.

    `is_complete`: no pair within the radius is missed.
    """

    centroids: np.ndarray
    gaps: np.ndarray
    margin: float
    is_complete: bool

    def blocks(self, points: Points, height: int, width: int) -> Blocks:
        """Rows to compare with rows, `height` x `width` at most. Some pairs come twice, and rows with themselves."""
        cells, rows, visited = self._sort(points)
        members, guests = _by_cell(cells, len(self.centroids)), _by_cell(visited, len(self.centroids))
        for ours, visitors in zip(members, guests, strict=True):
            for top in range(0, len(ours), height):
                theirs = np.concatenate([ours[top:], rows[visitors]])
                for left in range(0, len(theirs), width):
                    yield ours[top : top + height], theirs[left : left + width]

    def _sort(self, points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The cell of each row; rows that are guests, and the cells where they are."""
        cells, rows, visited = [], [], []
        for start in range(0, len(points), BLOCK):
            own, distances = _planes(points[start : start + BLOCK], self.centroids, self.gaps)
            guests, where = np.divmod(np.flatnonzero(distances <= self.margin), len(self.centroids))
            cells.append(own)
            rows.append((guests + start).astype(np.int32))
            visited.append(where.astype(np.int16))
        return np.concatenate(cells), np.concatenate(rows), np.concatenate(visited)


def blocking(points: Points, radius: float) -> Blocking | None:
    """Cells that need no more than MAX_COMPARED comparisons a row; None where comparing all pairs needs no more.

    Where that many are not enough for all pairs within `radius`, the margin is smaller than half of it.
    """
    if len(points) <= 2 * MAX_COMPARED:
        return None
    centroids = _centroids(points)
    squares = np.einsum("kd,kd->k", centroids, centroids)
    gaps = np.sqrt(np.maximum(0, squares[:, None] + squares - 2 * centroids @ centroids.T))
    half = radius / 2 * (1 + ROUNDING)
    drawn = np.random.default_rng(SEED).choice(len(points), min(PROBE_ROWS, len(points)), replace=False)
    own, distances = _planes(points[np.sort(drawn)], centroids, gaps)
    sizes = np.bincount(own, minlength=len(centroids)) / len(own) * len(points)
    for step in range(MARGINS, 0, -1):
        margin = half * step / MARGINS
        compared = sizes[own] / 2 + (distances <= margin) @ sizes
        if compared.mean() <= MAX_COMPARED:
            return Blocking(centroids, gaps, margin, step == MARGINS)
    return Blocking(centroids, gaps, -1.0, False)


def _centroids(points: Points) -> np.ndarray:
    import faiss

    count = min(2 * int(len(points) ** 0.5), np.iinfo(np.int16).max)
    rows = min(len(points), ROWS_A_CENTROID * count)
    drawn = points[np.sort(np.random.default_rng(SEED).choice(len(points), rows, replace=False))]
    fitted = faiss.Kmeans(drawn.shape[1], count, niter=ROUNDS, seed=SEED, min_points_per_centroid=1)
    fitted.train(np.nan_to_num(drawn))
    return np.asarray(fitted.centroids)


def _planes(rows: np.ndarray, centroids: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each row (N int16), and how far it is from the plane to each other cell (N x K), inf for its own."""
    nearness = rows @ centroids.T
    nearness -= np.einsum("kd,kd->k", centroids, centroids) / 2
    own = nearness.argmax(1)
    each = np.arange(len(rows))
    distances = nearness[each, own][:, None] - nearness
    with np.errstate(invalid="ignore"):  # two centroids in one place
        distances /= gaps[own]
    distances[each, own] = np.inf
    return own.astype(np.int16), np.nan_to_num(distances, copy=False, nan=0.0, posinf=np.inf)


def _by_cell(cells: np.ndarray, count: int) -> list[np.ndarray]:
    """The places of each cell in `cells`, ascending."""
    order = np.argsort(cells, kind="stable")
    return np.split(order, np.cumsum(np.bincount(cells, minlength=count))[:-1])
