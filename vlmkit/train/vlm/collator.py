"""What each step takes: groups of samples in the order of the epochs, as packed rows with their pictures."""

import hashlib
import os
import zlib
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vlmkit.errors import VlmkitError
from vlmkit.io.executor import ahead
from vlmkit.io.images import open_picture
from vlmkit.io.records import batched
from vlmkit.io.sources import Bytes, PictureError
from vlmkit.models.llava.connectors import tower_features
from vlmkit.models.llava.model import Vlm
from vlmkit.train.data.augment import view_of
from vlmkit.train.vlm.groups import Group
from vlmkit.train.vlm.packing import Packer

CHUNK = 16  # pictures that the tower sees at once while features are cached
TENSORS = "input_ids", "position_ids", "segment_ids", "branch_ids", "label_positions", "labels"
ReadPixels = Callable[[Bytes, int, bool], Tensor]  # (picture, view, whether it may be mirrored) -> (3, H, W) or (N, F)


class SampleRef(NamedTuple):
    """One group in one epoch, from 0."""

    group: int
    epoch: int


class Order(Sequence[SampleRef]):
    """The first `total` groups that `epoch(0)`, `epoch(1)` and so on draw; each (N,) numbers of groups.

    An epoch is drawn when it is needed, and the last ones are kept.
    """

    def __init__(self, epoch: Callable[[int], np.ndarray], total: int) -> None:
        self.epoch, self.total = lru_cache(2)(epoch), total
        self.starts = [0]  # of the epochs so far, and where the next one starts

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self.total))]
        if not 0 <= place < self.total:
            raise IndexError(place)
        while place >= self.starts[-1]:
            self.starts.append(self.starts[-1] + len(self.epoch(len(self.starts) - 1)))
        number = bisect(self.starts, place) - 1
        return SampleRef(int(self.epoch(number)[place - self.starts[number]]), number)


class OrderedSampler(Sampler[list[SampleRef]]):
    """The groups of a whole run in their order, in micro-batches of `batch_size`, those of process `rank`.

    A step takes the same groups for any number of processes and micro-batches.
    """

    def __init__(self, refs: Sequence[SampleRef], batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.refs, self.batch_size, self.rank, self.world = refs, batch_size, rank, world

    def __len__(self) -> int:
        return -(-len(self.refs) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for start in range(self.rank * self.batch_size, len(self.refs), self.batch_size * self.world):
            yield list(self.refs[start : start + self.batch_size])


class GroupDataset(Dataset[SampleRef]):
    """Groups with their pictures as the model takes them, read a batch at a time."""

    def __init__(self, groups: Sequence[Group], read_pixels: ReadPixels, views: int, seed: int) -> None:
        self.groups, self.read_pixels, self.views, self.seed = groups, read_pixels, views, seed

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, ref: SampleRef) -> SampleRef:
        return ref  # `read_batch` reads it, with the rest of its batch

    def refs(self) -> Sequence[SampleRef]:
        """Each group once, in order."""
        return Order(lambda epoch: np.arange(len(self)), len(self))

    def read(self, ref: SampleRef) -> tuple[Group, list[Tensor]]:
        """The group with its pictures, in a view that depends on seed, epoch and group. Raises VlmkitError."""
        group = self.groups[ref.group]
        view = self.views - 1 - int(np.random.default_rng([self.seed, ref.epoch, ref.group]).random() * self.views)
        return group, [self.read_pixels(picture, view, group.mirror) for picture in group.pictures]

    def read_batch(self, collate: Callable[[list[Any]], dict[str, Any]], refs: list[SampleRef]) -> dict[str, Any]:
        """The batch of `refs`, or its error: torch passes errors of loader processes on as text alone."""
        try:
            return collate([self.read(ref) for ref in refs])
        except VlmkitError as error:
            return {"error": error}


def collate(packer: Packer, items: list[tuple[Group, list[Tensor]]], power: float = 0.0) -> dict[str, Any]:
    """Groups with their pictures as what `PackedLossModel` takes, with `names`, and `tokens` without padding.

    A label weighs 1 / (labels of its reply) ** power; 0.5 is the square averaging of InternVL 2.5 (arXiv:2412.05271),
    which keeps long replies from outweighing short ones. Raises VlmkitError where there is nothing to learn.
    """
    pixels = [tensor for _, tensors in items for tensor in tensors]
    start = np.cumsum([0, *(len(tensors) for _, tensors in items)])
    batch = packer.pack(
        [(group.samples, list(range(start[i], start[i] + len(tensors)))) for i, (group, tensors) in enumerate(items)]
    )
    names = tuple(group.name for group, _ in items)
    if not len(batch.labels):
        raise VlmkitError(f"nothing to learn in the batch of {', '.join(names)}", "give replies that are not empty")
    tensors = {name: torch.from_numpy(getattr(batch, name)) for name in TENSORS}
    tensors["labels"] = tensors["labels"].long()
    tensors["weights"] = torch.from_numpy((batch.reply_lengths**-power).astype(np.float32))
    seen = torch.stack([pixels[i] for i in batch.pictures]) if batch.pictures else None
    return tensors | {"pixel_values": seen, "names": names, "tokens": int((batch.segment_ids >= 0).sum())}


def pixel_reader(vlm: Vlm, seed: int) -> ReadPixels:
    """How a view of a picture becomes the tower's pixels (3, H, W): by the model's own image processor."""
    side = vlm.vision.image_size

    def read(source: Bytes, view: int, mirror: bool) -> Tensor:
        try:
            picture: Any = open_picture(source, side)[0]
        except PictureError as error:
            raise VlmkitError(f"{source}: {error}", "fix or remove the picture, then train again") from None
        picture = view_of(picture, view, (seed, zlib.crc32(picture.tobytes())), side, mirror)
        return vlm.processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]

    return read


class CachedFeatures:
    """A frozen tower's features of each view of each picture, computed once, in a file of float16.

    The file is named after the tower, the views and the pictures, so a run that is resumed finds it again.
    """

    def __init__(self, vlm: Vlm, groups: Iterable[tuple[Group, int]], seed: int, folder: Path, workers: int) -> None:
        """`groups` come with the number of their views."""
        self.seed = seed
        keys = (
            _key(picture, view, group.mirror)
            for group, views in groups
            for picture in group.pictures
            for view in range(views)
        )
        self.rows = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        shape = len(self.rows), vlm.image_tokens, vlm.vision.hidden_size
        path = folder / f"features-{self._fingerprint(vlm)}.f16"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}")
            self._write(vlm, np.memmap(part, np.float16, "w+", shape=shape), workers)
            part.replace(path)
        self.values = np.memmap(path, np.float16, "r", shape=shape)

    def _fingerprint(self, vlm: Vlm) -> str:
        found = hashlib.sha256(vlm.vision.to_json_string().encode())
        for weight in vlm.model.model.vision_tower.state_dict().values():
            found.update(weight.detach().float().cpu().numpy().tobytes())
        found.update(repr([self.seed, *self.rows]).encode())
        return found.hexdigest()[:12]

    def _write(self, vlm: Vlm, values: np.ndarray, workers: int) -> None:
        read = pixel_reader(vlm, self.seed)
        device = next(vlm.model.model.multi_modal_projector.parameters()).device
        opened = ahead(self.rows, lambda key: read(*key), workers, depth=4 * CHUNK)
        start = 0
        for some in batched(opened, CHUNK):
            with torch.inference_mode():
                found = tower_features(vlm.model.model, torch.stack(some).to(device)).half().cpu().numpy()
            values[start : start + len(some)] = found
            start += len(some)

    def __call__(self, source: Bytes, view: int, mirror: bool) -> Tensor:
        """(N, F) float16."""
        return torch.from_numpy(np.array(self.values[self.rows[_key(source, view, mirror)]]))


def _key(source: Bytes, view: int, mirror: bool) -> tuple[Bytes, int, bool]:
    return source, view, mirror and view > 0
