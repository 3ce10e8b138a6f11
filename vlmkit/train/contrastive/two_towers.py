"""Towers by short names, from Python packages that carry the weights, so that training starts without a download.

The locked image tower runs once over every picture; training then reads its features from memory.

Captions as tensors: tokenized once, run once through the locked layers, encoded without padding.

The model that contrastive training makes: open_clip's own CustomTextCLIP, so that open_clip opens the result.

The image tower is a timm model, the text tower a Hugging Face encoder, each with a two-layer head.

Locked-image tuning (LiT: Zhai and others, 2021) of two towers, the locked one's features in memory.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize
from transformers.modeling_outputs import BaseModelOutput

from vlmkit.errors import VlmkitError, first_line
from vlmkit.io.executor import ahead
from vlmkit.io.records import batched
from vlmkit.models.embedders.base import silence_libraries
from vlmkit.train.config import LitConfig
from vlmkit.train.contrastive.gradcache import Pair, Peak
from vlmkit.train.contrastive.model import parts_of
from vlmkit.train.contrastive.retrieval import retrieval
from vlmkit.train.contrastive.sampler import Batch, open_sample
from vlmkit.train.data.augment import view_of
from vlmkit.train.data.samples import Captioned

VISION = "efficientnet-lite0"
TEXT = "all-minilm-l6-v2"
FULL = 30_522  # pieces in the vocabulary of BERT; those of other scripts are left out


@contextmanager
def towers(vision: str, text: str) -> Iterator[tuple[str, str]]:
    """`vision` and `text` as training takes them: the registered names become folders that live as long as the block.

    Raises VlmkitError where the package behind a name is not installed.
    """
    from vlmkit.recipes.mini.towers import text_tower, vision_tower

    with tempfile.TemporaryDirectory(prefix="vlmkit-towers-") as name:
        try:
            if vision == VISION:
                vision = str(vision_tower(Path(name) / "vision"))
            if text == TEXT:
                text = str(text_tower(Path(name) / "text", words=(), size=FULL))
        except ModuleNotFoundError as error:
            what = f"the package {error.name} is not installed"
            raise VlmkitError(what, "pip install 'vlmkit[recipe]', or name towers with --vision and --text") from None
        yield vision, text


CHUNK = 8  # pictures at once: what stays in the caches of a CPU


def image_features(
    trunk: nn.Module,
    preprocess: Callable[[Image.Image], Tensor],
    samples: Sequence[Captioned],
    *,
    size: int,
    views: int = 1,
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
) -> Tensor:
    """Features (views, N, F) float32 of `samples`, in order, on `device`. Raises VlmkitError for a bad picture."""

    def pictures(item: tuple[int, Captioned]) -> Tensor:
        number, sample = item
        picture = open_sample(sample, size)
        make = partial(view_of, picture, key=(seed, number), size=size)
        return torch.stack([preprocess(make(view)) for view in range(views)])  # (views, 3, size, size)

    def features() -> Iterator[Tensor]:
        decoded = ahead(enumerate(samples), pictures, workers, depth=4 * CHUNK)
        for some in batched(decoded, max(1, CHUNK // views)):
            x = torch.stack(some).flatten(0, 1).to(device, memory_format=torch.channels_last)
            yield trunk(x).float().unflatten(0, (len(some), views))  # (n, views, F)

    trunk.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = torch.cat(list(features())).transpose(0, 1).contiguous()
    return found.clone()  # outside of inference mode, so that autograd may save it


TEXT_CHUNK = 64  # texts at once while nothing is trained


@dataclass(frozen=True, slots=True)
class Texts:
    """M texts, one after the other: what the first trained layer takes, for each of their T tokens."""

    values: Tensor  # (T,) token ids, or (T, W) float16 outputs of the locked layers
    starts: Tensor  # (M,)
    lengths: Tensor  # (M,)

    def rows(self, which: Tensor, length: int, device: str) -> Tensor:
        """(n, length) ids or (n, length, W) float32 of the texts `which`, all of that length."""
        found = self.values[self.starts[which][:, None] + torch.arange(length)].to(device)
        return found.float() if found.is_floating_point() else found


def layers_of(tower: nn.Module) -> nn.ModuleList | None:
    """The layers of a BERT-like encoder; None for towers built otherwise, which are trained whole or not at all."""
    encoder = getattr(tower, "encoder", None)
    layers = getattr(encoder, "layer", None)
    return layers if isinstance(layers, nn.ModuleList) and hasattr(tower, "embeddings") else None


class TextSide:
    """The text tower of `model` with its tokenizer; the lowest `locked` layers (and embeddings) are not trained."""

    def __init__(self, model: CustomTextCLIP, tokenizer: HFTokenizer, device: str, locked: int) -> None:
        self.text, self.tokenizer, self.device = model.text, tokenizer, device
        layers = layers_of(self.text.transformer)
        self.locked = list(layers)[:locked] if layers is not None else []
        self.trained = list(layers)[locked:] if layers is not None else []

    def prepare(self, captions: list[str]) -> Texts:
        """Tokenize, and run the locked layers."""
        parts: list[Tensor] = []
        for start in range(0, len(captions), 4096):
            ids = self.tokenizer(captions[start : start + 4096])  # (n, context), padded
            parts += [row[row != self.text.config.pad_token_id] for row in ids]
        lengths = torch.tensor([len(part) for part in parts])
        texts = Texts(torch.cat(parts), lengths.cumsum(0) - lengths, lengths)
        if not self.locked:
            return texts
        self.text.eval()
        values = torch.empty(len(texts.values), self.text.config.hidden_size, dtype=torch.float16)
        with torch.inference_mode():
            for some, length in by_length(lengths):
                for which in some.split(TEXT_CHUNK):
                    hidden = self.text.transformer.embeddings(texts.rows(which, length, self.device))
                    hidden = _through(self.locked, hidden)
                    values[texts.starts[which][:, None] + torch.arange(length)] = hidden.half().cpu()
        return Texts(values, texts.starts, lengths)

    def encode(self, texts: Texts, which: Tensor | None = None) -> Tensor:
        """Unnormalised vectors (n, D) of `which` (n,) texts, or of all. Texts of one length run together."""
        which = torch.arange(len(texts.lengths)) if which is None else which
        places, parts = [], []
        for some, length in by_length(texts.lengths[which]):
            for chosen in some.split(TEXT_CHUNK if not torch.is_grad_enabled() else len(some)):
                places.append(chosen)
                parts.append(self.text.proj(self._pooled(texts.rows(which[chosen], length, self.device))))
        return torch.cat(parts)[torch.cat(places).argsort().to(self.device)]

    def pooled(self, texts: Texts) -> Tensor:
        """What the head gets of all texts, (M, W), by the tower as it is now, dropout off."""
        self.text.eval()
        found = torch.empty(len(texts.lengths), self.text.config.hidden_size)
        with torch.inference_mode():
            for some, length in by_length(texts.lengths):
                for which in some.split(TEXT_CHUNK):
                    found[which] = self._pooled(texts.rows(which, length, self.device)).float().cpu()
        return found.to(self.device)

    def _pooled(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            hidden = _through(self.trained, x)
        else:
            hidden = self.text.transformer(input_ids=x, attention_mask=torch.ones_like(x)).last_hidden_state
        whole = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        return self.text.pooler(BaseModelOutput(last_hidden_state=hidden), whole)


def _through(layers: list[nn.Module], hidden: Tensor) -> Tensor:
    for layer in layers:
        out = layer(hidden)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def by_length(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """(positions, length) for each length that occurs, shortest first."""
    order = lengths.argsort(stable=True)
    found, counts = lengths[order].unique_consecutive(return_counts=True)
    return list(zip(order.split(counts.tolist()), found.tolist(), strict=True))


CONTEXT = 64  # tokens of a caption, first and last mark included
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def build(vision: str, text: str, dim: int, dropout: float) -> tuple[CustomTextCLIP, dict[str, Any]]:
    """(model, its open_clip configuration) from two pretrained towers, with new heads.

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
    size = source["input_size"][-1]
    config: dict[str, Any] = {
        "embed_dim": dim,
        "vision_cfg": {
            "timm_model_name": source["architecture"],
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "mlp",
            "timm_drop": dropout,
            "image_size": size,
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
    model.visual.trunk.load_state_dict(_without_classifier(trunk.state_dict(), model.visual.trunk))
    config["text_cfg"]["hf_model_pretrained"] = False
    return model, {"model_cfg": config, "preprocess_cfg": preprocess}


def _open_trunk(vision: str) -> nn.Module:
    name = f"local-dir:{vision}" if Path(vision).is_dir() else vision
    try:
        return timm.create_model(name, pretrained=True)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise VlmkitError(
            f"{vision}: not an image tower ({first_line(error)})", "name a timm model or folder"
        ) from None


def _without_classifier(weights: dict[str, Tensor], trunk: nn.Module) -> dict[str, Tensor]:
    """The weights that `trunk` has a place for: all but the classifier's, or it is another architecture."""
    wanted = trunk.state_dict().keys()
    kept = {name: value for name, value in weights.items() if name in wanted}
    if missing := wanted - kept.keys():
        raise VlmkitError(f"the image tower lacks {min(missing)}", "name another one with --vision")
    return kept


def lock(model: CustomTextCLIP, text_layers: int) -> int:
    """Lock the image tower, and the text tower but for its top `text_layers` layers; the heads stay free.

    Returns how many of the lowest text layers are locked. With as many trained layers as there are, or in a tower whose
    layers cannot be told apart, the token embeddings are trained too; with 0 the whole text tower is locked.
    """
    model.visual.trunk.requires_grad_(False)
    tower = model.text.transformer
    layers = layers_of(tower)
    if layers is None:
        tower.requires_grad_(text_layers > 0)
        return 0
    locked = max(0, len(layers) - text_layers)
    tower.requires_grad_(locked == 0)
    for layer in layers[locked:]:
        layer.requires_grad_(True)
    return locked


def open_folder(folder: Path) -> tuple[CustomTextCLIP, Any, HFTokenizer]:
    """(model, evaluation preprocessing, tokenizer) of a folder that `save` wrote, wherever it has been moved to.

    open_clip reads the text tower's configuration from the path in `hf_model_name`, hence the second argument.
    """
    text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, text_cfg={**text, "hf_model_name": str(folder)})
    return model, preprocess, open_clip.get_tokenizer(name)


def save(model: CustomTextCLIP, config: dict[str, Any], text: str, made: Path, final: Path) -> None:
    """Write `model` into `made`, a folder that will be renamed to `final`.

    It then opens with `open_clip.create_model_and_transforms("local-dir:FINAL")`. The tokenizer is that of `text`.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    cfg = config["model_cfg"]
    place = str(final.absolute())
    cfg = cfg | {"text_cfg": cfg["text_cfg"] | {"hf_model_name": place, "hf_tokenizer_name": place}}
    written = json.dumps(config | {"model_cfg": cfg}, indent=2, sort_keys=True)
    (made / "open_clip_config.json").write_text(written + "\n")
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    (made / "model.safetensors").chmod((made / "open_clip_config.json").stat().st_mode)
    model.text.config.save_pretrained(made)
    if Path(text).is_dir():
        for name in TOKENIZER_FILES:
            if (Path(text) / name).exists():
                shutil.copyfile(Path(text) / name, made / name)
    else:
        HFTokenizer(text).save_pretrained(made)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder that `save` wrote, under open_clip's names."""
    return load_file(folder / "model.safetensors")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Samples as numbers: picture features and caption tokens."""

    features: Tensor  # (views, N, F)
    texts: Texts  # M captions
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


class Lit:
    """The heads learn alone first, from what both towers say as they came; then the top of the text tower joins in.

    A text tower that starts beside untrained heads is pulled about for nothing (Kumar and others, 2022).
    """

    fresh = False  # new models of open_clip start with CLIP's scale

    def __init__(
        self,
        config: LitConfig,
        vision: str,
        text: str,
        training: list[Captioned],
        validation: list[Captioned],
        heads_alone: int,
    ) -> None:
        """`vision` and `text` are folders or names of towers. Raises VlmkitError."""
        self.config, self.text, self.heads_alone = config, text, heads_alone
        self.model, self.description = build(vision, text, config.dim, config.dropout)
        locked = lock(self.model, config.text_layers)
        self.model.to(config.device)
        self.side = TextSide(self.model, HFTokenizer(text, context_length=CONTEXT), config.device, locked)
        self.training = self._prepared(training, config.augmentations)
        self.validation = self._prepared(validation, 1) if validation else None

    def _prepared(self, samples: list[Captioned], views: int) -> Prepared:
        size = self.description["model_cfg"]["vision_cfg"]["image_size"]
        features = image_features(
            self.model.visual.trunk,
            image_transform_v2(PreprocessCfg(size=size, **self.description["preprocess_cfg"]), is_train=False),
            samples,
            size=size,
            views=views,
            seed=self.config.seed,
            workers=self.config.workers,
            device=self.config.device,
        )
        texts = self.side.prepare([caption for sample in samples for caption in sample.captions])
        counts = torch.tensor([len(sample.captions) for sample in samples])
        return Prepared(features, texts, self.side.pooled(texts), counts)

    def peak(self, name: str) -> Peak:
        if name.startswith("text.transformer."):
            return Peak("text_lr", self.config.text_lr, self.heads_alone)
        return Peak("lr", self.config.lr)

    def load(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[Any]]]:
        for batch in batches:
            yield batch, list(parts_of(batch, self.config.accumulate))

    def embed(self, part: Batch, again: bool = False) -> Pair:
        data = self.training
        seen = dropout(data.features[part.views, part.pictures], self.config.feature_dropout)  # (b, F)
        rows = data.first[part.pictures] + torch.from_numpy(part.captions)  # (C, b)
        if part.step <= self.heads_alone:
            texts = self.model.text.proj(data.pooled[rows])  # (C, b, D)
        else:
            texts = self.side.encode(data.texts, rows.flatten()).unflatten(0, rows.shape)
        return self.model.visual.head(seen), texts

    def train(self) -> None:
        self.model.train()
        self.model.visual.trunk.eval()  # its batch norms must not learn either

    def validate(self, step: int) -> dict[str, float]:
        if self.validation is None:
            return {}
        self.model.eval()
        with torch.inference_mode():
            images = normalize(self.model.visual.head(self.validation.features[0]), dim=-1)
            trained = step > self.heads_alone
            texts = self.side.encode(self.validation.texts) if trained else self.model.text.proj(self.validation.pooled)
            return retrieval(images, normalize(texts, dim=-1), self.validation.owner.to(images.device))

    def save(self, made: Path, final: Path) -> None:
        self.model.eval()
        save(self.model, self.description, self.text, made, final)
