"""Lines of text in a picture, and the order in which people read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MIN_COLUMN = 3  # lines on each side of what separates two columns
COLUMN_LETTERS = 12  # of the middle one of a column's lines; what has fewer is a cell of a table, read by rows
FILLED = 0.6  # of the widest line's width, that of the middle one of a column
GAP = 4  # heights of a line, between the middles of two lines: columns end there
SAME_ROW = 0.5  # of the lower line's height, between the middles of two lines of one row


@dataclass(frozen=True, slots=True)
class Line:
    """A piece of text in one line.

    `quad` are its corners (4 x 2, pixels) from the beginning of its upper edge on, clockwise as it is read; `score` is
    the mean probability of its characters.
    """

    text: str
    score: float
    quad: "np.ndarray"

    @property
    def direction(self) -> "np.ndarray":
        """From its beginning to its end, in pixels."""
        return (self.quad[1] + self.quad[2] - self.quad[0] - self.quad[3]) / 2


@dataclass(frozen=True, slots=True)
class _Placed:
    """A line where it is once the page is upright."""

    line: Line
    left: float
    right: float
    middle: float
    height: float


def in_reading_order(lines: Sequence[Line]) -> list[list[Line]]:
    """Rows from top to bottom, each from left to right, column by column, of a page that may be turned."""
    import numpy as np

    if not lines:
        return []
    along = page_direction(lines)
    axes = np.stack([along, (-along[1], along[0])], axis=1)  # (x, y) @ axes: to the right and down on the upright page
    placed = []
    for line in lines:
        corners = line.quad @ axes
        (left, top), (right, bottom) = corners.min(0), corners.max(0)
        height = min(float(np.linalg.norm(line.quad[3] - line.quad[0])), bottom - top)
        placed.append(_Placed(line, left, right, (top + bottom) / 2, height))
    placed.sort(key=lambda one: one.middle)
    return [[one.line for one in row] for block in _blocks(placed) for row in _ordered(block)]


def page_direction(lines: Sequence[Line]) -> "np.ndarray":
    """The unit vector along most of the text."""
    import numpy as np

    directions = np.stack([line.direction for line in lines])
    quarters = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)], float)
    nearest = (directions @ quarters.T).argmax(1)
    lengths = np.linalg.norm(directions, axis=1)
    most = np.bincount(nearest, lengths, minlength=4).argmax()
    total = directions[nearest == most].sum(0)
    norm = np.linalg.norm(total)
    return total / norm if norm else quarters[0]


def _blocks(placed: list[_Placed]) -> list[list[_Placed]]:
    """Lines that are sorted by their middles, parted where there is nothing for some lines."""
    height = _median([one.height for one in placed])
    ends = [n for n in range(1, len(placed)) if placed[n].middle - placed[n - 1].middle > GAP * height]
    return [placed[start:end] for start, end in pairwise([0, *ends, len(placed)])]


def _ordered(placed: list[_Placed]) -> list[list[_Placed]]:
    """Rows of lines that are sorted by their middles."""
    found = _columns(placed)
    if found is None:
        return _rows(placed)
    start, end, gutter = found
    inside = placed[start:end]
    parts = [
        placed[:start],
        [one for one in inside if one.right <= gutter],
        [one for one in inside if one.right > gutter],
        placed[end:],
    ]
    return [row for part in parts if part for row in _ordered(part)]


def _columns(placed: list[_Placed]) -> tuple[int, int, float] | None:
    """The longest run of lines, from `start` to before `end`, with nothing across x = `gutter`, and text beside it."""
    best: tuple[int, int, float] | None = None
    for gutter in sorted({one.right for one in placed}):
        start = 0
        for end in range(len(placed) + 1):
            if end < len(placed) and not placed[end].left < gutter < placed[end].right:
                continue
            if end - start > (best[1] - best[0] if best else 0) and _is_gutter(placed[start:end], gutter):
                best = start, end, gutter
            start = end + 1
    return best


def _is_gutter(placed: list[_Placed], gutter: float) -> bool:
    left = [one for one in placed if one.right <= gutter]
    right = [one for one in placed if one.right > gutter]
    if min(len(left), len(right)) < MIN_COLUMN:
        return False
    height = _median([one.height for one in placed])
    if min(one.left for one in right) - max(one.right for one in left) < height / 2:
        return False
    return _is_prose(left) and _is_prose(right)


def _is_prose(column: list[_Placed]) -> bool:
    """Whether its lines are those of a text, which go on in the next one, and not the cells of a table."""
    widths = [one.right - one.left for one in column]
    letters = _median([sum(map(str.isalpha, one.line.text)) for one in column])
    return letters >= COLUMN_LETTERS and _median(widths) >= FILLED * max(widths)


def _median(numbers: Sequence[float]) -> float:
    return sorted(numbers)[len(numbers) // 2]


def _rows(placed: list[_Placed]) -> list[list[_Placed]]:
    rows: list[list[_Placed]] = []
    for one in placed:
        above = rows[-1][0] if rows else None
        if above and one.middle - above.middle < SAME_ROW * min(one.height, above.height):
            rows[-1].append(one)
        else:
            rows.append([one])
    return [sorted(row, key=lambda one: one.left) for row in rows]
