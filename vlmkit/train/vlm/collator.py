"""What each step sees: groups of sequences in the order of the epochs, as packed rows with their pictures."""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vlmkit.errors import VlmkitError
from vlmkit.io.executor import ahead
from vlmkit.io.images import open_picture
from vlmkit.io.records import batched
from vlmkit.io.sources import Bytes, PictureError
from vlmkit.models.llava.connectors import tower_features
from vlmkit.models.llava.model import Vlm
from vlmkit.train.data.augment import view_of
from vlmkit.train.vlm.packing import Packer
from vlmkit.train.vlm.tokenize import Sequence

INPUTS = "ids", "position", "unit", "branch", "places", "labels", "weights"
CHUNK = 16  # pictures that the tower sees at once while features are cached


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences about the same pictures."""

    name: str  # the id of the first sample
    pictures: tuple[Bytes, ...]
    sequences: list[Sequence]
    mirror: bool  # whether the pictures may be mirrored


See = Callable[[Bytes, int, bool], Tensor]  # (picture, view, whether that may be a mirror image) -> (3, H, W) or (N, F)


class Draw(NamedTuple):
    """One group in one epoch."""

    group: int
    epoch: int


class Feed(Dataset[tuple[Group, list[Tensor]]]):
    """Groups by `Draw`, with their pictures as the model takes them."""

    def __init__(self, groups: Several[Group], see: See, views: int, seed: int) -> None:
        self.groups, self.see, self.views, self.seed = groups, see, views, seed

    def __len__(self) -> int:
        return len(self.groups)

    def all(self) -> list[Draw]:
        """Each group once, in order."""
        return [Draw(group, 0) for group in range(len(self))]

    def __getitem__(self, draw: Draw) -> tuple[Group, list[Tensor]]:
        group = self.groups[draw.group]
        view = self.views - 1 - int(np.random.default_rng([self.seed, draw.epoch, draw.group]).random() * self.views)
        return group, [self.see(picture, view, group.mirror) for picture in group.pictures]


def collate(packer: Packer, items: list[tuple[Group, list[Tensor]]], power: float = 0.0) -> dict[str, Any]:
    """Groups with their pictures as what `Learner` takes, with `names`, and `tokens` without padding.

    A learned token weighs 1 / (learned tokens of its reply) ** power; 0.5 is the square averaging of InternVL 2.5
    (arXiv:2412.05271), which keeps long replies from outweighing short ones.
    Raises VlmkitError where there is nothing to learn.
    """
    seen = [tensor for _, tensors in items for tensor in tensors]
    start = np.cumsum([0, *(len(tensors) for _, tensors in items)])
    rows = packer.pack(
        [(group.sequences, list(range(start[i], start[i] + len(tensors)))) for i, (group, tensors) in enumerate(items)]
    )
    names = tuple(group.name for group, _ in items)
    if not len(rows.labels):
        raise VlmkitError(f"nothing to learn in the batch of {', '.join(names)}", "give replies that are not empty")
    arrays = (
        rows.ids,
        rows.position,
        rows.unit,
        rows.branch,
        rows.places,
        rows.labels.astype(np.int64),
        (rows.lengths**-power).astype(np.float32),
    )
    pixels = torch.stack([seen[i] for i in rows.pictures]) if rows.pictures else None
    tensors = zip(INPUTS, map(torch.from_numpy, arrays), strict=True)
    return dict(tensors) | {"seen": pixels, "names": names, "tokens": int((rows.unit >= 0).sum())}


def pixels_of(vlm: Vlm, seed: int) -> See:
    """How a view of a picture becomes the tower's pixels (3, H, W): by the model's own image processor."""
    side = vlm.vision.image_size

    def see(source: Bytes, view: int, mirror: bool) -> Tensor:
        try:
            picture: Image.Image = open_picture(source, side)[0]
        except PictureError as error:
            raise VlmkitError(f"{source}: {error}", "mend or remove the picture, then train again") from None
        picture = view_of(picture, view, (seed, zlib.crc32(picture.tobytes())), side, mirror)
        return vlm.processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]

    return see


class Features:
    """What a frozen tower says of each view of each picture, computed once, in a file of float16.

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
        self.at = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        shape = len(self.at), vlm.image_tokens, vlm.vision.hidden_size
        path = folder / f"features-{self._digest(vlm)}.f16"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}")
            self._write(vlm, np.memmap(part, np.float16, "w+", shape=shape), workers)
            part.replace(path)
        self.values = np.memmap(path, np.float16, "r", shape=shape)

    def _digest(self, vlm: Vlm) -> str:
        told = hashlib.sha256(vlm.vision.to_json_string().encode())
        for weight in vlm.model.model.vision_tower.state_dict().values():
            told.update(weight.detach().float().cpu().numpy().tobytes())
        told.update(repr([self.seed, *self.at]).encode())
        return told.hexdigest()[:12]

    def _write(self, vlm: Vlm, values: np.ndarray, workers: int) -> None:
        see = pixels_of(vlm, self.seed)
        device = next(vlm.model.model.multi_modal_projector.parameters()).device
        opened = ahead(self.at, lambda key: see(*key), workers, depth=4 * CHUNK)
        start = 0
        for some in batched(opened, CHUNK):
            with torch.inference_mode():
                found = tower_features(vlm.model.model, torch.stack(some).to(device)).half().cpu().numpy()
            values[start : start + len(some)] = found
            start += len(some)

    def __call__(self, source: Bytes, view: int, mirror: bool) -> Tensor:
        """(N, F) float16."""
        return torch.from_numpy(np.array(self.values[self.at[_key(source, view, mirror)]]))


def _key(source: Bytes, view: int, mirror: bool) -> tuple[Bytes, int, bool]:
    return source, view, mirror and view > 0
