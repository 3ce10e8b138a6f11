"""Which pictures, views and captions make each batch: a pure function of seed and epoch."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise, tee
from typing import Any, Self

import numpy as np
from PIL.Image import Image
from torch.utils.data import Dataset

from vlmkit.errors import VlmkitError
from vlmkit.io.images import open_picture
from vlmkit.io.sources import PictureError
from vlmkit.io.terminal import Failures
from vlmkit.train.data.dataset import read_data
from vlmkit.train.data.loader import unreadable
from vlmkit.train.data.mixture import Mixture, Ragged, alike
from vlmkit.train.data.samples import Captioned, parse_captioned
from vlmkit.train.data.store import RowFile, Stored
from vlmkit.train.distributed import rank, world

Pictures = Mixture[Captioned]
Loading = Generator[Any, None, None]


@dataclass(frozen=True, slots=True)
class Batch:
    """B different pictures, and C captions of each."""

    pictures: np.ndarray  # (B,) which samples
    views: np.ndarray  # (B,) which view of each
    captions: np.ndarray  # (C, B) which caption of each
    epoch: int = 1
    step: int = 0  # from 1
    ends_epoch: bool = False

    def parts(self, number: int) -> list["Batch"]:
        """`number` batches of equal size, give or take one picture; fewer where there are fewer pictures."""
        ends = np.linspace(0, len(self.pictures), min(number, len(self.pictures)) + 1).astype(int)
        return [
            replace(self, pictures=self.pictures[a:b], views=self.views[a:b], captions=self.captions[:, a:b])
            for a, b in pairwise(ends)
        ]

    def chunks(self, most: int) -> list["Batch"]:
        """Batches of at most `most` pictures."""
        return self.parts(-(-len(self.pictures) // most))

    def own_parts(self, number: int) -> list["Batch"]:
        """This process's share, in `number` parts."""
        return self.parts(world())[rank()].parts(number)


def batches(
    counts: Sequence[int] | np.ndarray,
    size: int,
    views: int,
    captions: int,
    seed: int,
    epoch: int,
    times: np.ndarray | None = None,
    least: int = 2,
) -> Iterator[Batch]:
    """The batches of one epoch: picture i, of `counts[i]` captions, `times[i]` times (once by default).

    `captions` of them each time, repeated where it has fewer. A picture stands at most once in a batch, so no caption
    of it is ever taken for a negative: its next turn waits for the next batch. Batches of fewer than `least` pictures,
    which the last ones may be, are left out: one picture alone has no negatives.
    """
    rng = np.random.default_rng([seed, epoch])
    drawn = np.repeat(np.arange(len(counts)), 1 if times is None else times)  # (D,)
    order = rng.permutation(len(drawn))
    view = rng.integers(views, size=len(drawn))
    chosen = np.empty((len(drawn), captions), np.int32)
    for place, i in enumerate(drawn):
        chosen[place] = np.resize(rng.permutation(int(counts[int(i)])), captions)
    for some in _without_repeats(order, drawn, size):
        if len(some) >= least:
            yield Batch(drawn[some], view[some], np.ascontiguousarray(chosen[some].T), epoch)


def _without_repeats(order: np.ndarray, drawn: np.ndarray, size: int) -> Iterator[np.ndarray]:
    rest = deque(order.tolist())
    while rest:
        some: list[int] = []
        later: list[int] = []
        here: set[int] = set()
        while rest and len(some) < size:
            place = rest.popleft()
            (later if drawn[place] in here else some).append(place)
            here.add(int(drawn[place]))
        rest.extendleft(reversed(later))
        yield np.array(some)


def run_batches(epoch_batches: Callable[[int], Iterable[Batch]], steps: int) -> Iterator[Batch]:
    """The batches of a run of `steps`, epoch after epoch."""
    step = 0
    for epoch in count(1):
        made = list(epoch_batches(epoch))[: steps - step]
        for number, batch in enumerate(made, 1):
            yield replace(batch, step=step + number, ends_epoch=number == len(made))
        step += len(made)
        if step == steps:
            return


class BatchStream(Dataset[dict[str, Any]]):
    """The batches of a run by their number, from 0, loaded ahead while they are taken in order."""

    def __init__(
        self,
        run: Callable[[], Iterator[Batch]],
        load: Callable[[Iterable[Batch]], Generator[Any, None, None]],
        steps: int,
    ):
        """`run` gives the batches of the whole run, `load` the parts of each that `embed` takes."""
        self.run, self.load, self.steps = run, load, steps
        self.next: int | None = None
        self.loaded: Any = None  # a Loading, once the first batch was asked for

    def close(self) -> None:
        """End the processes that read ahead: at the exit of Python they may be ended in the wrong order."""
        if self.loaded is not None:
            self.loaded.close()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number != self.next:
            self.close()
            self.batches, ahead = tee(islice(self.run(), number, None))
            self.loaded = self.load(ahead)
        self.next = number + 1
        return {"parts": next(self.loaded), "batch": next(self.batches)}


def read_pictures(
    data: list[str],
    failures: Failures,
    images: str | None = None,
    limit: int | None = None,
    workers: int = 4,
    quiet: bool = False,
) -> Pictures:
    """The pictures of DATA in order, at most `limit` of them; `images` is the folder of relative names.

    Rows about one picture become one sample with all their captions, so that no caption is ever contrasted with its own
    picture. Its id and its weight are those of the first of these rows. What cannot be used goes to `failures`.
    """
    reading = read_data(
        data, parse_captioned, failures=failures, images=images, limit=limit, workers=workers, quiet=quiet
    )
    rows: Any = reading.rows
    numbers = alike(rows.columns["pictures"], len(rows))
    found = SamePicture(rows, numbers.take(np.arange(len(numbers))[:limit]))
    return Mixture(found, np.asarray(reading.sources)[found.first], reading.table)


class SamePicture(Stored[Captioned]):
    """A sample for each list in `numbers`, of `rows` about one picture: the first one with the captions of all."""

    def __init__(self, rows: RowFile[Captioned], numbers: Ragged, counts: np.ndarray | None = None) -> None:
        self.rows, self.numbers = rows, numbers
        self.first = numbers.values[numbers.ends - numbers.lengths]
        self.columns = rows.columns[self.first]
        made = (len(sample.captions) for sample in self) if counts is None else counts
        self.counts = np.fromiter(made, np.int32, len(numbers))  # captions of each

    def only(self, numbers: np.ndarray) -> Self:
        return type(self)(self.rows, self.numbers.take(numbers), self.counts[numbers])

    def read(self, number: int) -> Captioned:
        first, *rest = (self.rows[row] for row in self.numbers[number])
        captions = first.captions
        for row in rest:
            captions += tuple(caption for caption in row.captions if caption not in captions)
        return replace(first, captions=captions)


def read_samples(data: list[str], images: str | None = None, limit: int | None = None) -> list[Captioned]:
    """The pictures of DATA, all of them usable. Raises VlmkitError where one is not."""
    failures = Failures()
    pictures = read_pictures(data, failures, images, limit)
    if failures.count:
        raise VlmkitError(f"{failures.count} rows cannot be used", "fix or remove them")
    return list(pictures.rows)


def open_sample(sample: Captioned, size: int) -> Image:
    """The decoded RGB picture, upright; a large JPEG at no less than 1.6 times `size`. Raises VlmkitError."""
    try:
        return open_picture(sample.picture, size)[0]
    except PictureError as error:
        raise unreadable(sample.id, error) from None
