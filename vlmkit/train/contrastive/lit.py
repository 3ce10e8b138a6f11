"""Locked-image tuning (LiT: Zhai and others, 2021) of two towers, the locked one's features in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.nn.functional import dropout, normalize

from vlmkit.train.contrastive.batches import Batch
from vlmkit.train.contrastive.config import LitConfig
from vlmkit.train.contrastive.features import image_features
from vlmkit.train.contrastive.gradcache import Pair
from vlmkit.train.contrastive.learner import parts_of
from vlmkit.train.contrastive.loop import Peak
from vlmkit.train.contrastive.retrieval import retrieval
from vlmkit.train.contrastive.text import Texts, TextSide
from vlmkit.train.contrastive.towers import CONTEXT, build, lock, save
from vlmkit.train.rows import Captioned


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
        self.training = self._prepared(training, config.views)
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
