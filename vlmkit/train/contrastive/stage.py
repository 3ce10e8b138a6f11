"""`vlmkit train contrastive`: a locked image tower (LiT, Zhai and others, 2021) and a text tower learn one space."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.nn.functional import dropout, normalize

from vlmkit.errors import VlmkitError
from vlmkit.train.contrastive.batches import Batch, batches, batches_per_epoch
from vlmkit.train.contrastive.data import Sample, read_samples, split
from vlmkit.train.contrastive.features import image_features
from vlmkit.train.contrastive.loop import Loop, optimizer_for
from vlmkit.train.contrastive.retrieval import retrieval
from vlmkit.train.contrastive.text import Texts, TextSide
from vlmkit.train.contrastive.towers import CONTEXT, build, lock, save
from vlmkit.train.log import Log
from vlmkit.train.output import check_free, whole_folder


@dataclass(frozen=True, slots=True)
class ContrastiveConfig:
    """What one run does; the same configuration on the same machine makes the same bytes."""

    data: list[str]
    out: Path
    vision: str  # a timm model, or a folder in timm's form
    text: str  # a Hugging Face text encoder, or a folder of one
    val: str | float | None = None  # other data, or the share of `data` to hold out
    images: str | None = None  # folder of relative picture names
    limit: int | None = None  # at most so many pictures of `data`, and of `val`
    epochs: float = 40
    steps: int | None = None  # so many, whatever `epochs` says
    text_epochs: int = 1  # in how many of the last epochs the text tower is trained too; before, the heads alone
    batch_size: int = 512  # pictures
    captions: int = 5  # of each picture in a batch
    views: int = 4  # 1: the picture; 2: and its mirror image; more: and random crops
    dim: int = 256
    dropout: float = 0.3  # in the head of the image tower
    feature_dropout: float = 0.35  # of the image tower's features
    lr: float = 1e-3  # of the heads
    text_lr: float = 3e-5  # of the text tower
    text_layers: int = 1  # how many of its top layers are trained
    weight_decay: float = 1.0
    warmup: float = 0.1  # share of all steps
    log_every: int = 10
    seed: int = 0
    device: str = "cpu"
    workers: int = 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """Samples as numbers: picture features and caption tokens."""

    ids: list[str]
    features: Tensor  # (views, N, F)
    texts: Texts  # M captions
    pooled: Tensor  # (M, W) by the text tower as it came
    counts: list[int]  # captions of each picture
    owner: Tensor  # (M,) which picture a caption belongs to

    @property
    def first(self) -> Tensor:
        """(N,) where the captions of each picture start."""
        counts = torch.tensor(self.counts)
        return counts.cumsum(0) - counts


def train(config: ContrastiveConfig, log: Log) -> Path:
    """Train and write the folder `config.out`. Raises VlmkitError; then no folder is left."""
    check_free(config.out)
    torch.manual_seed(config.seed)
    samples = read_samples(config.data, config.images, config.limit)
    held_out: list[Sample] = []
    if isinstance(config.val, float):
        samples, held_out = split(samples, config.val)
    elif config.val:
        held_out = read_samples([config.val], config.images, config.limit)
    if len(samples) < 2:
        raise VlmkitError("one picture alone has nothing to be told from", "give more data")
    model, description = build(config.vision, config.text, config.dim, config.dropout)
    locked = lock(model, config.text_layers)
    model.to(config.device)
    side = TextSide(model, HFTokenizer(config.text, context_length=CONTEXT), config.device, locked)
    prepare = _preparer(model, side, description, config)
    training = prepare(samples, config.views)
    validation = prepare(held_out, 1) if held_out else None
    with whole_folder(config.out) as made:
        _run(model, side, training, validation, config, log)
        save(model, description, config.text, made, config.out)
    return config.out


def _preparer(
    model: CustomTextCLIP, side: TextSide, description: dict[str, Any], config: ContrastiveConfig
) -> Callable[[list[Sample], int], Prepared]:
    size = description["model_cfg"]["vision_cfg"]["image_size"]
    preprocess = image_transform_v2(PreprocessCfg(size=size, **description["preprocess_cfg"]), is_train=False)

    def prepare(samples: list[Sample], views: int) -> Prepared:
        features = image_features(
            model.visual.trunk,
            preprocess,
            samples,
            size=size,
            views=views,
            seed=config.seed,
            workers=config.workers,
            device=config.device,
        )
        texts = side.prepare([caption for sample in samples for caption in sample.captions])
        counts = [len(sample.captions) for sample in samples]
        owner = torch.arange(len(samples)).repeat_interleave(torch.tensor(counts))
        return Prepared([sample.id for sample in samples], features, texts, side.pooled(texts), counts, owner)

    return prepare


def _run(
    model: CustomTextCLIP,
    side: TextSide,
    training: Prepared,
    validation: Prepared | None,
    config: ContrastiveConfig,
    log: Log,
) -> None:
    """The heads learn alone first, from what both towers say as they came; then the top of the text tower joins in.

    A text tower that starts beside untrained heads is pulled about for nothing (Kumar and others, 2022).
    """
    per_epoch = batches_per_epoch(len(training.ids), config.batch_size)
    steps = config.steps or round(config.epochs * per_epoch)
    text_steps = min(steps, config.text_epochs * per_epoch) if config.text_layers else 0
    heads_alone = steps - text_steps
    optimizer = optimizer_for(model, config.lr, config.text_lr, config.weight_decay)
    loop = Loop(optimizer, model.logit_scale, steps, heads_alone, config.warmup)

    def measure(epoch: int) -> None:
        if validation is not None:
            log({"epoch": epoch, "step": loop.step} | evaluate(model, side, validation, loop.step > heads_alone))

    def some_batches(epoch: int) -> Iterator[Batch]:
        views = len(training.features)
        made = batches(training.counts, config.batch_size, views, config.captions, config.seed, epoch)
        return islice(made, steps - loop.step)

    measure(0)
    for epoch in range(1, math.ceil(steps / per_epoch) + 1):
        model.train()
        model.visual.trunk.eval()  # its batch norms must not learn either
        for batch in some_batches(epoch):
            seen = dropout(training.features[batch.views, batch.pictures], config.feature_dropout)  # (B, F)
            rows = training.first[batch.pictures] + torch.from_numpy(batch.captions)  # (C, B)
            if loop.step < heads_alone:
                texts = model.text.proj(training.pooled[rows])  # (C, B, D)
            else:
                texts = side.encode(training.texts, rows.flatten()).unflatten(0, rows.shape)
            figures = loop.update(model.visual.head(seen), texts, [training.ids[i] for i in batch.pictures])
            if loop.step in (1, steps) or loop.step % config.log_every == 0:
                log({"epoch": epoch} | figures)
        measure(epoch)
    model.eval()


def evaluate(model: CustomTextCLIP, side: TextSide, data: Prepared, text_trained: bool = True) -> dict[str, float]:
    """Retrieval figures of `model` on `data`, dropout off."""
    model.eval()
    with torch.inference_mode():
        images = normalize(model.visual.head(data.features[0]), dim=-1)
        texts = side.encode(data.texts) if text_trained else model.text.proj(data.pooled)
        return retrieval(images, normalize(texts, dim=-1), data.owner.to(images.device))
