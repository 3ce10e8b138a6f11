"""Reads the batches of contrastive training: pictures decoded and captions tokenized by other processes, in chunks."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import tee
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlmkit.errors import VlmkitError
from vlmkit.models.embedders.base import TorchEmbedder
from vlmkit.train.config import ContrastiveConfig
from vlmkit.train.contrastive.sampler import Batch, open_sample
from vlmkit.train.data.augment import view_of
from vlmkit.train.data.loader import AHEAD, at_once, loader_of
from vlmkit.train.data.samples import Captioned
from vlmkit.train.distributed import world

CHUNK = 16  # pictures that a process decodes at once
MOST_AHEAD = 64  # chunks of each process: 600 MB for pictures of 224 pixels


class Inputs(NamedTuple):
    """b pictures and C captions of each, as the model takes them."""

    pictures: dict[str, Tensor]  # (b, …)
    texts: dict[str, Tensor]  # (C, b, T)


class PictureLoader(Dataset[Inputs | VlmkitError]):
    """Batches of `samples` for the model of `embedder`."""

    def __init__(self, settings: ContrastiveConfig, embedder: Any, samples: Sequence[Captioned]) -> None:
        self.settings, self.samples = settings, samples
        self.embedder: TorchEmbedder = embedder

    def load(self, batches: Iterable[Batch]) -> Generator[list[list[Inputs]], None, None]:
        """This process's parts of each batch, each of them in chunks. Raises VlmkitError for a damaged picture."""
        shares, coming = tee(batch.own_parts(self.settings.accumulate) for batch in batches)
        own = self.settings.batch_size // world()
        made = self.read((chunk for parts in coming for part in parts for chunk in part.chunks(CHUNK)), own)
        for parts in shares:
            yield [[next(made) for _ in part.chunks(CHUNK)] for part in parts]

    def all_pictures(self) -> Iterator[Inputs]:
        """Each picture once, in order, as it is, with its first caption. Raises VlmkitError for a damaged one."""
        every = np.arange(len(self.samples))
        whole = Batch(every, np.zeros_like(every), np.zeros((1, len(every)), np.int32))
        return self.read(whole.chunks(CHUNK), len(every))

    def read(self, chunks: Iterable[Batch], pictures: int) -> Iterator[Inputs]:
        """`chunks` as they are read; of so many `pictures` all are read ahead, while nobody takes any."""
        workers, pin = self.settings.loaders(), self.settings.device == "cuda"
        depth = max(AHEAD, min(-(-pictures // (CHUNK * workers)), MOST_AHEAD)) if workers else 0
        how = {"batch_size": None, "sampler": chunks, "collate_fn": _as_it_is}
        for chunk in loader_of(self, workers=workers, pin=pin, depth=depth, **how):
            if isinstance(chunk, VlmkitError):
                raise chunk
            yield chunk

    def __getitem__(self, chunk: Batch) -> Inputs | VlmkitError:
        """The chunk, or its error: torch passes errors of other processes on as text alone."""
        try:
            samples = [self.samples[int(number)] for number in chunk.pictures]
            pictures = at_once(partial(self._picture, chunk, samples), range(len(samples)), samples)
        except VlmkitError as error:
            return error
        captions = [
            sample.captions[which] for row in chunk.captions for sample, which in zip(samples, row, strict=True)
        ]
        shape = chunk.captions.shape
        texts = {name: x.unflatten(0, shape) for name, x in self.embedder.tokens(captions).items()}
        return Inputs(self.embedder.picture_inputs(torch.from_numpy(np.stack(pictures))), texts)

    def _picture(self, chunk: Batch, samples: list[Captioned], i: int) -> np.ndarray:
        number, size = int(chunk.pictures[i]), self.embedder.size
        picture = open_sample(samples[i], size)
        key = (self.settings.seed, chunk.epoch, number)
        return self.embedder.preprocess(view_of(picture, int(chunk.views[i]), key, size))


def _as_it_is(chunk: Any) -> Any:
    return chunk
