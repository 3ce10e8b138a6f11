"""What a run trains: a dual encoder with its pictures and captions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from vlmkit.train.contrastive.batches import Batch
from vlmkit.train.contrastive.gradcache import Pair
from vlmkit.train.contrastive.loop import Peak
from vlmkit.train.contrastive.processes import rank, world


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
