"""Dual encoders trained from pixels and tokens, as open_clip and transformers have them.

What a run trains: a dual encoder with its pictures and captions.

A trained dual encoder in the form of the library that it is of.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlmkit.errors import VlmkitError
from vlmkit.io.executor import ahead
from vlmkit.io.records import batched
from vlmkit.models.embedders.open_clip import OpenClip
from vlmkit.models.embedders.transformers import Transformers
from vlmkit.models.resolve import OPEN_CLIP_CONFIG, Checkpoint, resolve
from vlmkit.models.types import Hardware
from vlmkit.train.config import ContrastiveConfig
from vlmkit.train.contrastive.gradcache import Pair, Peak
from vlmkit.train.contrastive.retrieval import retrieval
from vlmkit.train.contrastive.sampler import Batch, open_sample
from vlmkit.train.data.augment import view_of
from vlmkit.train.data.samples import Captioned
from vlmkit.train.distributed import rank, world

CHUNK = 32  # pictures, or texts, at once while nothing is trained
IMAGE = ("visual.", "vision_model.", "visual_projection.")
LOGITS = ("logit_scale", "logit_bias")
TOWERS = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}


@dataclass(frozen=True, slots=True)
class Seen:
    """b pictures and C captions of each, as the model takes them."""

    pictures: dict[str, Tensor]
    texts: dict[str, Tensor]
    captions: int  # C


class Dual:
    """A CLIP or SigLIP of open_clip or transformers, opened as `vlmkit embed` opens it."""

    def __init__(
        self, config: ContrastiveConfig, start: str, fresh: bool, training: list[Captioned], validation: list[Captioned]
    ) -> None:
        """`start` is a model with weights, which are `fresh`, or learned. Raises VlmkitError."""
        self.config, self.fresh, self.training, self.validation = config, fresh, training, validation
        self.checkpoint = resolve(start, "embed")
        self.embedder = _embedder(self.checkpoint, config.device)
        self.model: nn.Module = self.embedder.model
        self.locked = lock(self.model, config.lock)
        names = (name for name, value in self.model.named_parameters() if value.requires_grad)
        self.trained = {"image" if name.startswith(IMAGE) else "text" for name in names if name not in LOGITS}

    def peak(self, name: str) -> Peak:
        return Peak("lr", self.config.lr)

    def load(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[Any]]]:
        shared = [(batch, parts_of(batch, self.config.accumulate)) for batch in batches]
        places = ((part, i) for _, parts in shared for part in parts for i in range(len(part.pictures)))
        depth = 4 * self.config.workers + len(shared[0][1][0].pictures) if shared else 1
        decoded = ahead(places, self._picture, self.config.workers, depth)
        for batch, parts in shared:
            yield batch, [self._seen(part, list(islice(decoded, len(part.pictures)))) for part in parts]

    def _picture(self, place: tuple[Batch, int]) -> np.ndarray:
        batch, i = place
        number, size = int(batch.pictures[i]), self.embedder.size
        picture = open_sample(self.training[number], size)
        return self.embedder.preprocess(
            view_of(picture, int(batch.views[i]), (self.config.seed, batch.epoch, number), size)
        )

    def _seen(self, part: Batch, pictures: list[np.ndarray]) -> Seen:
        captions = [
            self.training[number].captions[which]
            for row in part.captions
            for number, which in zip(part.pictures, row, strict=True)
        ]
        return Seen(self._pixels(pictures), self._tokens(captions), len(part.captions))

    def _pixels(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        return self._pinned(self.embedder.picture_inputs(torch.from_numpy(np.stack(pictures))))

    def _tokens(self, captions: list[str]) -> dict[str, Tensor]:
        return self._pinned(self.embedder.tokens(captions))

    def _pinned(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.pin_memory() for name, x in inputs.items()} if self.config.device == "cuda" else inputs

    def embed(self, part: Seen, again: bool = False) -> Pair:
        images = texts = None
        if not again or "image" in self.trained:
            images = self._encode(self.embedder.encode_images, part.pictures)
        if not again or "text" in self.trained:
            texts = self._encode(self.embedder.encode_texts, part.texts).unflatten(0, (part.captions, -1))
        return images, texts

    def _encode(self, encode: Any, inputs: dict[str, Tensor]) -> Tensor:
        """(n, D) float32, unnormalised; on a GPU computed in bfloat16."""
        device = self.config.device
        moved = {name: x.to(device, non_blocking=True) for name, x in inputs.items()}
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return encode(moved).float()

    def train(self) -> None:
        """Batch norms with learned statistics keep them: those of a few small batches ruin a model in a few steps."""
        self.model.train()
        norms = (
            [] if self.fresh else [x for x in self.model.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)]
        )
        for part in [*self.locked, *norms]:
            part.eval()

    def validate(self, step: int) -> dict[str, float]:
        if not self.validation:
            return {}
        self.model.eval()
        side = self.embedder.size
        decoded = ahead(
            self.validation,
            lambda sample: self.embedder.preprocess(open_sample(sample, side)),
            self.config.workers,
            4 * CHUNK,
        )
        captions = [caption for sample in self.validation for caption in sample.captions]
        with torch.no_grad():
            images = [self._encode(self.embedder.encode_images, self._pixels(some)) for some in batched(decoded, CHUNK)]
            texts = [self._encode(self.embedder.encode_texts, self._tokens(some)) for some in batched(captions, CHUNK)]
            counts = torch.tensor([len(sample.captions) for sample in self.validation])
            owner = torch.arange(len(counts)).repeat_interleave(counts).to(self.config.device)
            return retrieval(normalize(torch.cat(images), dim=-1), normalize(torch.cat(texts), dim=-1), owner)

    def save(self, made: Path, final: Path) -> None:
        self.model.eval()
        save(self.model, self.checkpoint, made, final)


def _embedder(checkpoint: Checkpoint, device: str) -> OpenClip | Transformers:
    if checkpoint.backend == "mini":
        remedy = "name a model of open_clip or transformers, or train mini's towers with --vision and --text"
        raise VlmkitError("mini is packed for use and has nothing to train", remedy)
    backend = OpenClip if checkpoint.backend == "open_clip" else Transformers
    return backend(checkpoint, Hardware(device))


def lock(model: Any, side: str) -> list[nn.Module]:
    """Lock the tower `side` of `model`, image, text or none: the modules in which nothing is trained now.

    A tower is locked with its projection, as open_clip does; new heads on a tower of timm or Hugging Face stay free.
    """
    if hasattr(model, "lock_image_tower"):
        if side != "none":
            (model.lock_image_tower if side == "image" else model.lock_text_tower)()
    else:
        for name in TOWERS.get(side, ()):
            if hasattr(model, name):  # SigLIP has no projections
                getattr(model, name).requires_grad_(False)
    parts = [part for part in model.modules() if any(True for _ in part.parameters())]
    return [part for part in parts if not any(p.requires_grad for p in part.parameters())]


class Learner(Protocol):
    """`model` is the whole model, with what is locked in it."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def fresh(self) -> bool:
        """Whether the logit scale was not learned yet."""

    def peak(self, name: str) -> Peak:
        """The rate of the parameter `name`."""

    def load(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[Any]]]:
        """Each batch, with this process's parts of it as `embed` takes them."""

    def embed(self, part: Any, again: bool = False) -> Pair:
        """Unnormalised vectors (b, D) of the pictures and (C, b, D) of the captions; None `again` for a locked side."""

    def train(self) -> None:
        """Dropout on, but in what is locked."""

    def validate(self, step: int) -> dict[str, float]:
        """Retrieval figures on the validation data after `step` steps; nothing if there are none."""

    def save(self, made: Path, final: Path) -> None:
        """Write the model into `made`, whose files go to `final`."""


def parts_of(batch: Batch, accumulate: int) -> list[Batch]:
    """The share of this process, in parts."""
    return batch.parts(world())[rank()].parts(accumulate)


def save(model: Any, origin: Checkpoint, made: Path, final: Path) -> None:
    """Write `model`, which came from `origin`, into `made`, whose files go to `final`.

    open_clip opens it as local-dir:FINAL, transformers by from_pretrained. A CLIP of transformers has no place for the
    bias of the SigLIP loss, which only training needs: it is left out there.
    """
    if origin.backend == "open_clip":
        _save_open_clip(model, origin, made, final)
    else:
        weights = model.state_dict()
        if "logit_bias" in weights and not hasattr(type(model)(model.config), "logit_bias"):
            del weights["logit_bias"]
        model.save_pretrained(made, state_dict=weights)
    for path in origin.processing:
        if not (made / path.name).exists():
            shutil.copyfile(path, made / path.name)


def _save_open_clip(model: nn.Module, origin: Checkpoint, made: Path, final: Path) -> None:
    settings = copy.deepcopy(origin.settings)
    if getattr(model, "logit_bias", None) is not None:
        settings["model_cfg"].setdefault("init_logit_bias", -10)
    if "tower" in origin.places:  # its configuration moves in beside
        settings["model_cfg"]["text_cfg"] |= {"hf_model_name": str(final.absolute()), "hf_model_pretrained": False}
    (made / OPEN_CLIP_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
