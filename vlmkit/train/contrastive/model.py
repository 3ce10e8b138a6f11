"""Dual encoders trained from pixels and tokens, as open_clip and transformers have them, and written as such."""

import copy
import json
import shutil
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlmkit.errors import VlmkitError
from vlmkit.io.records import batched
from vlmkit.models.embedders.open_clip import OpenClip
from vlmkit.models.embedders.transformers import Transformers
from vlmkit.models.resolve import OPEN_CLIP_CONFIG, Checkpoint, resolve
from vlmkit.models.texts import context_of, count_cut
from vlmkit.models.types import Hardware, warn_of_cut
from vlmkit.train.checkpoints import LoadedStrictly
from vlmkit.train.config import ContrastiveConfig
from vlmkit.train.contrastive.gradcache import Pair
from vlmkit.train.contrastive.loader import Inputs, PictureLoader
from vlmkit.train.contrastive.sampler import Batch
from vlmkit.train.data.samples import Captioned
from vlmkit.train.distributed import rank

TEXTS = 4096  # tokenized at once
CHUNK = 32  # texts at once while nothing is trained
IMAGE = ("visual.", "vision_model.", "visual_projection.")
LOGITS = ("logit_scale", "logit_bias")
TOWERS = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}
KS = (1, 5, 10)
ROWS = 1024  # of the table of cosines that are in memory at once


class Rate(NamedTuple):
    """The highest learning rate of some parameters, under its name in the log; 0 for the first `start` steps."""

    name: str
    peak: float
    start: int = 0


class ContrastiveModel(LoadedStrictly):
    """A dual encoder `model` with its pictures and captions, as the trainer takes it. `train` turns dropout on."""

    model: Any
    from_scratch = False  # whether the logit scale was not learned yet

    def rate_of(self, name: str) -> Rate:
        """The rate of the parameter `name` of `model`."""
        raise NotImplementedError

    def load(self, batches: Iterable[Batch]) -> Generator[list[Any], None, None]:
        """This process's parts of each batch, as `embed` takes them."""
        raise NotImplementedError

    def embed(self, part: Any, again: bool = False) -> Pair:
        """Unnormalised vectors (b, D) of the pictures and (C, b, D) of the captions; None `again` for a locked side."""
        raise NotImplementedError

    def validate(self, step: int) -> dict[str, float]:
        """The `retrieval` metrics of the validation data after `step` steps."""
        raise NotImplementedError

    def save(self, made: Path, final: Path) -> None:
        """Write the model into `made`, whose files go to `final`."""
        raise NotImplementedError


class DualEncoder(ContrastiveModel):
    """A CLIP or SigLIP of open_clip or transformers, opened as `vlmkit embed` opens it."""

    def __init__(
        self,
        settings: ContrastiveConfig,
        start: str,
        from_scratch: bool,
        training: Sequence[Captioned],
        validation: Sequence[Captioned],
    ) -> None:
        """`start` is a model with weights, random ones if `from_scratch`. Raises VlmkitError."""
        super().__init__()
        self.settings, self.from_scratch, self.validation = settings, from_scratch, validation
        self.checkpoint = resolve(start, "embed")
        self.embedder = _embedder(self.checkpoint, settings.device)
        self.model = self.embedder.model
        self.loader, self.held_out = (PictureLoader(settings, self.embedder, some) for some in (training, validation))
        warn_of_cut_captions(self.embedder.text_tokenizer, training)
        lock(self.model, settings.lock)
        self.locked = locked_modules(self.model)
        names = (name for name, value in self.model.named_parameters() if value.requires_grad)
        self.sides = {"image" if name.startswith(IMAGE) else "text" for name in names if name not in LOGITS}

    def rate_of(self, name: str) -> Rate:
        return Rate("learning_rate", self.settings.lr)

    def load(self, batches: Iterable[Batch]) -> Generator[list[list[Inputs]], None, None]:
        return self.loader.load(batches)

    def embed(self, part: list[Inputs], again: bool = False) -> Pair:
        images = texts = None
        if not again or "image" in self.sides:
            images = self._encode(self.embedder.encode_images, self._moved([chunk.pictures for chunk in part], 0))
        if not again or "text" in self.sides:
            moved = self._moved([chunk.texts for chunk in part], 1)  # (C, b, T)
            flat = {name: x.flatten(0, 1) for name, x in moved.items()}
            texts = self._encode(self.embedder.encode_texts, flat).unflatten(0, next(iter(moved.values())).shape[:2])
        return images, texts

    def _moved(self, chunks: list[dict[str, Tensor]], dim: int) -> dict[str, Tensor]:
        """The chunks, joined along `dim`, on the device."""
        device = self.settings.device
        return {name: torch.cat([x[name].to(device, non_blocking=True) for x in chunks], dim) for name in chunks[0]}

    def _encode(self, encode: Any, inputs: dict[str, Tensor]) -> Tensor:
        """(n, D) float32, unnormalised, computed in the precision of the run."""
        with torch.autocast(self.settings.device, torch.bfloat16, enabled=self.settings.computes_in() == "bf16"):
            return encode(inputs).float()

    def train(self, mode: bool = True) -> Self:
        """Batch norms with learned statistics keep them: those of a few small batches ruin a model in a few steps."""
        super().train(mode)
        norms = [x for x in self.model.modules() if isinstance(x, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm)]
        for part in [*self.locked, *([] if self.from_scratch else norms)]:
            part.eval()
        return self

    def validate(self, step: int) -> dict[str, float]:
        self.eval()
        captions = (caption for sample in self.validation for caption in sample.captions)
        with torch.no_grad():
            images = [
                self._encode(self.embedder.encode_images, self._moved([chunk.pictures], 0))
                for chunk in self.held_out.all_pictures()
            ]
            texts = [
                self._encode(self.embedder.encode_texts, self._moved([self.embedder.tokens(some)], 0))
                for some in batched(captions, CHUNK)
            ]
            counts = torch.tensor([len(sample.captions) for sample in self.validation])
            owner = torch.arange(len(counts)).repeat_interleave(counts).to(self.settings.device)
            return retrieval(normalize(torch.cat(images), dim=-1), normalize(torch.cat(texts), dim=-1), owner)

    def save(self, made: Path, final: Path) -> None:
        """open_clip opens it as local-dir:FINAL, transformers by from_pretrained.

        A CLIP of transformers has no place for the bias of the SigLIP loss, which only training needs: it is left out.
        """
        origin, weights = self.checkpoint, self.model.state_dict()
        if origin.backend == "open_clip":
            settings = copy.deepcopy(origin.settings)
            if getattr(self.model, "logit_bias", None) is not None:
                settings["model_cfg"].setdefault("init_logit_bias", -10)
            if "tower" in origin.places:  # its configuration moves in beside
                tower = {"hf_model_name": str(final.absolute()), "hf_model_pretrained": False}
                settings["model_cfg"]["text_cfg"] |= tower
            write_open_clip(weights, settings, made)
        else:
            if "logit_bias" in weights and not hasattr(type(self.model)(self.model.config), "logit_bias"):
                del weights["logit_bias"]
            self.model.save_pretrained(made, state_dict=weights)
        for path in origin.processing:
            if not (made / path.name).exists():
                shutil.copyfile(path, made / path.name)


def warn_of_cut_captions(tokenizer: Any, samples: Sequence[Captioned]) -> None:
    """Tell how many captions are longer than `tokenizer` (of the package tokenizers, or None) cuts them to."""
    if tokenizer is None or rank() > 0:
        return
    captions = (caption for sample in samples for caption in sample.captions)
    if cut := sum(count_cut(tokenizer, some) for some in batched(captions, TEXTS)):
        warn_of_cut(cut, context_of(tokenizer), "learned")


def write_open_clip(weights: dict[str, Tensor], settings: dict[str, Any], folder: Path) -> None:
    """Write weights and configuration as open_clip has them."""
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _embedder(checkpoint: Checkpoint, device: str) -> OpenClip | Transformers:
    if checkpoint.backend == "mini":
        remedy = "name a model of open_clip or transformers, or train mini's towers with --vision and --text"
        raise VlmkitError("mini is packed for use and has nothing to train", remedy)
    backend = OpenClip if checkpoint.backend == "open_clip" else Transformers
    return backend(checkpoint, Hardware(device))


def lock(model: Any, side: str) -> None:
    """Lock the tower `side` of `model`: image, text or none.

    A tower is locked with its projection, as open_clip does; new heads on a tower of timm or Hugging Face stay free.
    """
    if hasattr(model, "lock_image_tower"):
        if side != "none":
            (model.lock_image_tower if side == "image" else model.lock_text_tower)()
    else:
        for name in TOWERS.get(side, ()):
            if hasattr(model, name):  # SigLIP has no projections
                getattr(model, name).requires_grad_(False)


def locked_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of which no parameter is trained."""
    parts = [part for part in model.modules() if any(True for _ in part.parameters())]
    return [part for part in parts if not any(p.requires_grad for p in part.parameters())]


def retrieval(images: Tensor, texts: Tensor, owner: Tensor) -> dict[str, float]:
    """Recall at 1, 5, 10 both ways, as fractions, and the gap between pairs and others.

    `images` (N, D) and `texts` (M, D) are L2-normalised; caption j belongs to picture `owner[j]` (M,). A picture counts
    as found by the best of its captions (Karpathy and Fei-Fei, 2015). Ties count against the model. The gap is the mean
    cosine of pairs minus that of all other combinations.
    """
    images, texts = images.double(), texts.double()
    numbers = torch.arange(len(images), device=owner.device)
    found: dict[str, float] = {}
    sides = (texts, owner), (images, numbers)
    for name, asked, answers in (("text_to_image", *sides), ("image_to_text", *sides[::-1])):
        parts = zip(*(x.split(ROWS) for x in asked), strict=True)
        before = torch.cat([_better(some, of, *answers) for some, of in parts])
        found |= {f"{name}_r{k}": (before < k).double().mean().item() for k in KS}
    pairs = (images[owner] * texts).sum()
    others = len(images) * len(texts) - len(texts)
    gap = pairs / len(texts) - ((images.sum(0) @ texts.sum(0) - pairs) / others if others else 0)
    return {name: round(value, 6) for name, value in found.items()} | {"gap": round(float(gap), 6)}


def _better(asked: Tensor, of: Tensor, answers: Tensor, owned: Tensor) -> Tensor:
    """How many wrong `answers` (N, D) are no worse than the best right one, for each of `asked` (n, D): (n,)."""
    table, right = asked @ answers.T, of[:, None] == owned[None]
    best = table.masked_fill(~right, -2).amax(1, keepdim=True)
    return ((best <= table) & ~right).sum(1)
