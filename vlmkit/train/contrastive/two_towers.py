"""Two pretrained towers, timm's and Hugging Face's, joined into open_clip's CustomTextCLIP, and locked-image tuning.

The locked image tower runs once over every picture; training reads its features from memory (LiT: Zhai and others,
2021).
"""

import json
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import open_clip
import timm
import torch
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize

from vlmkit.errors import VlmkitError, first_line
from vlmkit.io.executor import ahead
from vlmkit.io.records import batched
from vlmkit.models.embedders.base import silence_libraries
from vlmkit.models.embedders.tokenizers import of_transformers
from vlmkit.train.config import LitConfig
from vlmkit.train.contrastive.gradcache import Pair
from vlmkit.train.contrastive.model import (
    ContrastiveModel,
    Rate,
    locked_modules,
    retrieval,
    warn_of_cut_captions,
    write_open_clip,
)
from vlmkit.train.contrastive.sampler import Batch, open_sample
from vlmkit.train.data.augment import view_of
from vlmkit.train.data.samples import Captioned

PICTURES_AT_ONCE = 8  # what stays in the caches of a CPU
TEXTS_AT_ONCE = 64  # while nothing is trained
TOKENIZED_AT_ONCE = 4096
CONTEXT = 64  # tokens of a caption, first and last mark included
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def build(vision: str, text: str, dim: int, dropout: float) -> tuple[CustomTextCLIP, dict[str, Any]]:
    """(model, its open_clip configuration) from two pretrained towers, each with a new head of two layers.

    `vision` is a timm model or a folder in timm's form (config.json, model.safetensors), `text` a Hugging Face text
    encoder or a folder of one. Raises VlmkitError where one cannot be opened.
    """
    silence_libraries()
    trunk = _open_trunk(vision)
    source: Any = trunk.pretrained_cfg
    preprocess = {
        "mean": list(source["mean"]),
        "std": list(source["std"]),
        "interpolation": source["interpolation"],
        "resize_mode": "shortest",
    }
    config: dict[str, Any] = {
        "embed_dim": dim,
        "vision_cfg": {
            "timm_model_name": source["architecture"],
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "mlp",
            "timm_drop": dropout,
            "image_size": source["input_size"][-1],
        },
        "text_cfg": {
            "hf_model_name": text,
            "hf_tokenizer_name": text,
            "hf_model_pretrained": True,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp",
            "context_length": CONTEXT,
        },
    }
    try:
        model = CustomTextCLIP(**config)
    except (OSError, ValueError) as error:
        raise VlmkitError(f"{text}: not a text encoder ({first_line(error)})", "name a folder or a model") from None
    places = model.visual.trunk.state_dict().keys()  # all but the classifier's
    weights = {name: value for name, value in trunk.state_dict().items() if name in places}
    if missing := places - weights.keys():
        raise VlmkitError(f"the image tower lacks {min(missing)}", "name another one with --vision")
    model.visual.trunk.load_state_dict(weights)
    config["text_cfg"]["hf_model_pretrained"] = False
    return model, {"model_cfg": config, "preprocess_cfg": preprocess}


def _open_trunk(vision: str) -> nn.Module:
    name = f"local-dir:{vision}" if Path(vision).is_dir() else vision
    try:
        return timm.create_model(name, pretrained=True)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        what = f"{vision}: not an image tower ({first_line(error)})"
        raise VlmkitError(what, "name a timm model or folder") from None


def open_folder(folder: Path) -> tuple[CustomTextCLIP, Any, HFTokenizer]:
    """(model, evaluation preprocessing, tokenizer) of a folder that `save` wrote, wherever it has been moved to.

    open_clip reads the text tower's configuration from the path in `hf_model_name`, hence the second argument.
    """
    text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, text_cfg={**text, "hf_model_name": str(folder)})
    return model, preprocess, open_clip.get_tokenizer(name)


def save(model: CustomTextCLIP, config: dict[str, Any], text: str, made: Path, final: Path) -> None:
    """Write `model` into `made`, a folder that will be renamed to `final`, with the tokenizer of the tower `text`.

    It then opens with `open_clip.create_model_and_transforms("local-dir:FINAL")`.
    """
    cfg, place = config["model_cfg"], str(final.absolute())
    cfg = cfg | {"text_cfg": cfg["text_cfg"] | {"hf_model_name": place, "hf_tokenizer_name": place}}
    write_open_clip(model.state_dict(), config | {"model_cfg": cfg}, made)
    model.text.config.save_pretrained(made)
    if Path(text).is_dir():
        for name in TOKENIZER_FILES:
            if (Path(text) / name).exists():
                shutil.copyfile(Path(text) / name, made / name)
    else:
        HFTokenizer(text).save_pretrained(made)


def image_features(
    trunk: nn.Module,
    preprocess: Callable[[Image.Image], Tensor],
    samples: Sequence[Captioned],
    *,
    size: int,
    views: int,
    settings: LitConfig,
) -> Tensor:
    """Features (views, N, F) float32 of `samples`, in order, on the device. Raises VlmkitError for a bad picture."""

    def pictures(item: tuple[int, Captioned]) -> Tensor:
        number, sample = item
        picture = open_sample(sample, size)
        make = partial(view_of, picture, key=(settings.seed, number), size=size)
        return torch.stack([preprocess(make(view)) for view in range(views)])  # (views, 3, size, size)

    def features() -> Iterator[Tensor]:
        decoded = ahead(enumerate(samples), pictures, settings.loaders(), depth=4 * PICTURES_AT_ONCE)
        for some in batched(decoded, max(1, PICTURES_AT_ONCE // views)):
            x = torch.stack(some).flatten(0, 1).to(settings.device, memory_format=torch.channels_last)
            yield trunk(x).float().unflatten(0, (len(some), views))  # (n, views, F)

    trunk.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = torch.cat(list(features())).transpose(0, 1).contiguous()
    return found.clone()  # outside of inference mode, so that autograd may save it


def layers_of(tower: nn.Module) -> list[nn.Module]:
    """The layers of a BERT-like encoder; none for other towers, which are trained as a whole or not at all."""
    layers = getattr(getattr(tower, "encoder", None), "layer", None)
    return list(layers) if isinstance(layers, nn.ModuleList) and hasattr(tower, "embeddings") else []


def lock_towers(model: CustomTextCLIP, text_layers: int) -> None:
    """Lock the image tower, and the text tower but for its top `text_layers` layers; the heads stay free.

    With as many trained layers as there are, or in a tower whose layers cannot be told apart, the token embeddings are
    trained too; with 0 the whole text tower is locked.
    """
    model.visual.trunk.requires_grad_(False)
    tower = model.text.transformer
    layers = layers_of(tower)
    top = layers[max(0, len(layers) - text_layers) :]
    tower.requires_grad_(text_layers > 0 and len(top) == len(layers))
    for layer in top:
        layer.requires_grad_(True)


class CaptionEncoder:
    """The text tower of `model` on captions of one length at a time, so without padding."""

    def __init__(self, model: CustomTextCLIP, tokenizer: HFTokenizer) -> None:
        self.text, self.tokenizer = model.text, tokenizer

    def tokenize(self, captions: Iterable[str]) -> Tensor:
        """(M, context) token ids, padded."""
        return torch.cat([self.tokenizer(some) for some in batched(captions, TOKENIZED_AT_ONCE)])

    def pooled(self, ids: Tensor) -> Tensor:
        """What the head gets of `ids` (n, context): (n, W), on the device of the tower."""
        device = next(self.text.parameters()).device
        lengths = (ids != self.text.config.pad_token_id).sum(1)
        order = lengths.argsort(stable=True)
        found, counts = lengths[order].unique_consecutive(return_counts=True)
        parts = []
        for some, length in zip(order.split(counts.tolist()), found.tolist(), strict=True):
            for which in some.split(len(some) if torch.is_grad_enabled() else TEXTS_AT_ONCE):
                tokens = ids[which, :length].to(device)
                mask = torch.ones_like(tokens)
                parts.append(self.text.pooler(self.text.transformer(input_ids=tokens, attention_mask=mask), mask))
        return torch.cat(parts)[order.argsort().to(device)]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Samples as numbers: picture features and caption tokens."""

    features: Tensor  # (views, N, F)
    tokens: Tensor  # (M, context) of all captions
    pooled: Tensor  # (M, W) by the text tower as it came
    counts: Tensor  # (N,) captions of each picture

    @property
    def first(self) -> Tensor:
        """(N,) where the captions of each picture start."""
        return self.counts.cumsum(0) - self.counts

    @property
    def owner(self) -> Tensor:
        """(M,) which picture a caption belongs to."""
        return torch.arange(len(self.counts)).repeat_interleave(self.counts)


class LockedImageTuning(ContrastiveModel):
    """The heads learn alone first, from what both towers say as they came; then the top of the text tower joins in.

    A text tower that starts beside untrained heads is pulled about for nothing (Kumar and others, 2022).
    """

    def __init__(
        self,
        settings: LitConfig,
        towers: tuple[str, str],
        training: Sequence[Captioned],
        validation: Sequence[Captioned],
        heads_alone: int,
    ) -> None:
        """`towers` are names or folders; only the heads are trained for `heads_alone` steps. Raises VlmkitError."""
        super().__init__()
        self.settings, self.heads_alone = settings, heads_alone
        vision, self.text = towers
        self.model, self.description = build(vision, self.text, settings.dim, settings.dropout)
        lock_towers(self.model, settings.text_layers)
        self.locked = locked_modules(self.model)
        self.model.to(settings.device).eval()
        self.captions = CaptionEncoder(self.model, HFTokenizer(self.text, context_length=CONTEXT))
        warn_of_cut_captions(of_transformers(self.captions.tokenizer.tokenizer, CONTEXT), training)
        self.data = self._prepared(training, settings.augmentations)
        self.validation = self._prepared(validation, 1) if validation else None

    def _prepared(self, samples: Sequence[Captioned], views: int) -> Prepared:
        size = self.description["model_cfg"]["vision_cfg"]["image_size"]
        preprocess = image_transform_v2(PreprocessCfg(size=size, **self.description["preprocess_cfg"]), is_train=False)
        trunk = self.model.visual.trunk
        features = image_features(trunk, preprocess, samples, size=size, views=views, settings=self.settings)
        tokens = self.captions.tokenize(caption for sample in samples for caption in sample.captions)
        with torch.no_grad():
            pooled = self.captions.pooled(tokens)
        return Prepared(features, tokens, pooled, torch.tensor([len(sample.captions) for sample in samples]))

    def rate_of(self, name: str) -> Rate:
        if name.startswith("text.transformer."):
            return Rate("text_lr", self.settings.text_lr, self.heads_alone)
        return Rate("learning_rate", self.settings.lr)

    def load(self, batches: Iterable[Batch]) -> Generator[list[Batch], None, None]:
        return (batch.own_parts(self.settings.accumulate) for batch in batches)

    def embed(self, part: Batch, again: bool = False) -> Pair:
        data = self.data
        seen = dropout(data.features[part.views, part.pictures], self.settings.feature_dropout)  # (b, F)
        rows = data.first[part.pictures] + torch.from_numpy(part.captions)  # (C, b)
        if part.step <= self.heads_alone:
            pooled = data.pooled[rows]  # (C, b, W)
        else:
            pooled = self.captions.pooled(data.tokens[rows.flatten()]).unflatten(0, rows.shape)
        return self.model.visual.head(seen), self.model.text.proj(pooled)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.locked:
            part.eval()  # batch norms must not learn either
        return self

    def validate(self, step: int) -> dict[str, float]:
        data = self.validation
        if data is None:
            return {}
        self.eval()
        with torch.inference_mode():
            images = normalize(self.model.visual.head(data.features[0]), dim=-1)
            pooled = self.captions.pooled(data.tokens) if step > self.heads_alone else data.pooled
            texts = normalize(self.model.text.proj(pooled), dim=-1)
            return retrieval(images, texts, data.owner.to(images.device))

    def save(self, made: Path, final: Path) -> None:
        save(self.model, self.description, self.text, made, final)
