"""What each step takes: groups of samples in the order of the epochs, as packed rows with their pictures."""

import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlmkit.errors import VlmkitError
from vlmkit.io.executor import ahead
from vlmkit.io.files import explain_no_room
from vlmkit.io.images import open_picture
from vlmkit.io.records import batched
from vlmkit.io.sources import Bytes, PictureError
from vlmkit.models.llava.connectors import tower_features
from vlmkit.models.llava.model import Vlm
from vlmkit.train.data.augment import view_of
from vlmkit.train.data.loader import at_once, unreadable
from vlmkit.train.vlm.batches import MicroBatch, Order, SampleRef
from vlmkit.train.vlm.groups import Group
from vlmkit.train.vlm.packing import Packer

CHUNK = 16  # pictures that the tower sees at once while features are cached
TENSORS = "input_ids", "position_ids", "segment_ids", "branch_ids", "label_positions", "labels"
ReadPixels = Callable[[Bytes, int, bool], Tensor]  # (picture, view, whether it may be mirrored) -> (3, H, W) or (N, F)


class GroupDataset(Dataset[list[SampleRef]]):
    """Groups with their pictures as the model takes them, read a micro-batch at a time."""

    def __init__(self, groups: Sequence[Group], read_pixels: ReadPixels, views: int, seed: int) -> None:
        self.groups, self.read_pixels, self.views, self.seed = groups, read_pixels, views, seed

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, part: list[SampleRef]) -> list[SampleRef]:
        return part  # `read_batch` reads it, with the rest of its batch

    def refs(self) -> Sequence[SampleRef]:
        """Each group once, in order."""
        return Order(lambda epoch: np.arange(len(self)), len(self))

    def read(self, ref: SampleRef) -> tuple[Group, list[Tensor]]:
        """The group with its pictures, in a view that depends on seed, epoch and group. Raises VlmkitError."""
        return self._read(ref, self.groups[ref.group])

    def _read(self, ref: SampleRef, group: Group) -> tuple[Group, list[Tensor]]:
        view = self.views - 1 - int(np.random.default_rng([self.seed, ref.epoch, ref.group]).random() * self.views)
        pixels = [self.read_pixels(picture, view, group.mirror) for picture in group.pictures]
        return replace(group, samples=group.samples[ref.start : ref.stop]), pixels

    def read_batch(self, collate: Callable[[list[Any]], dict[str, Any]], parts: MicroBatch) -> dict[str, Any]:
        """The batch of `parts`, or its error: torch passes errors of loader processes on as text alone.

        Of several parts a batch has `parts`, each a batch that goes through the model by itself.
        """
        try:
            made = [self._read_part(collate, refs) for refs in parts]
        except VlmkitError as error:
            return {"error": error}
        return made[0] if len(made) == 1 else {"parts": made}

    def _read_part(self, collate: Callable[[list[Any]], dict[str, Any]], refs: list[SampleRef]) -> dict[str, Any]:
        groups = [self.groups[ref.group] for ref in refs]
        batch = collate(at_once(lambda i: self._read(refs[i], groups[i]), range(len(refs)), groups))
        if refs[0].counts:
            return batch
        return batch | {"weights": torch.zeros_like(batch["weights"]), "names": (), "tokens": 0, "slots": 0}


def parts_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of what `GroupDataset.read_batch` gives."""
    return batch.get("parts", [batch])


def collate(packer: Packer, items: list[tuple[Group, list[Tensor]]], power: float = 0.0) -> dict[str, Any]:
    """Groups with their pictures as what `PackedLossModel` takes, with `names`, `tokens`, and `slots` with padding.

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
    shown = list(dict.fromkeys(batch.pictures))  # a picture of several segments goes through the tower once
    if len(shown) < len(batch.pictures):
        tensors["shown"] = torch.tensor([shown.index(i) for i in batch.pictures])
    seen = torch.stack([pixels[i] for i in shown]) if shown else None
    counts = {"tokens": int((batch.segment_ids >= 0).sum()), "slots": batch.segment_ids.size}
    return tensors | {"pixel_values": seen, "names": names} | counts


def pixel_reader(vlm: Vlm, seed: int) -> ReadPixels:
    """How a view of a picture becomes the tower's pixels (3, H, W): by the model's own image processor."""
    side = vlm.vision.image_size

    def read(source: Bytes, view: int, mirror: bool) -> Tensor:
        try:
            picture: Any = open_picture(source, side)[0]
        except PictureError as error:
            raise unreadable(str(source), error) from None
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
            with explain_no_room(folder, "the features", "free some space, or leave --cache-features out"):
                _reserve(part, 2 * math.prod(shape))
            self._write(vlm, np.memmap(part, np.float16, "r+", shape=shape), workers)
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


def _reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes: writing into a mapped one that does not fit on the disk would end the process."""
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            path.unlink()
            raise


def _key(source: Bytes, view: int, mirror: bool) -> tuple[Bytes, int, bool]:
    return source, view, mirror and view > 0
