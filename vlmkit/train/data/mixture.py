"""Mixtures of several DATA with weights: which rows an epoch draws, and which are held out for validation.

Hashes of the ids decide, so nothing shifts as data grow or come in another order.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Self, TypeVar

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.io.sources import Bytes
from vlmkit.train.data.report import Counts
from vlmkit.train.data.samples import Captioned, Dialogue, Preference

GROUP = 16  # dialogues about one picture that stay together
WEIGHTED = re.compile(r"(\d+(?:\.\d*)?|\.\d+):(.+)", re.DOTALL)
Row = TypeVar("Row", bound=Dialogue | Preference | Captioned)


def parse_weight(text: str) -> tuple[str, float]:
    """(path, weight) of a DATA such as `2:data.jsonl`; a path that exists as it stands has no weight in it.

    Raises VlmkitError for a weight of 0.
    """
    found = None if os.path.lexists(text) else WEIGHTED.fullmatch(text)
    if not found:
        return text, 1.0
    weight = float(found[1])
    if not weight:
        raise VlmkitError(f"{text} has the weight 0", "leave it out, or give it a weight above 0")
    return found[2], weight


@dataclass(frozen=True)
class Mixture(Generic[Row]):
    """The rows of all DATA in order, the number of the DATA that each one is from, and the counts of each DATA."""

    rows: list[Row]
    sources: list[int]
    table: list[Counts]

    @cached_property
    def groups(self) -> list[list[int]]:
        """Numbers of rows with equal pictures and weight, at most GROUP together, in order of appearance.

        Rows without pictures stand alone.
        """
        groups: list[list[int]] = []
        open_groups: dict[tuple[float, tuple[Bytes, ...]], list[int]] = {}
        for number, (row, source) in enumerate(zip(self.rows, self.sources, strict=True)):
            key = (self.table[source].weight, row.pictures)
            group = open_groups.get(key) if row.pictures else None
            if group is None or len(group) == GROUP:
                group = open_groups[key] = []
                groups.append(group)
            group.append(number)
        return groups

    @cached_property
    def _odds(self) -> tuple[np.ndarray, np.ndarray]:
        """(G,) weights of the groups, (G,) a number between 0 and 1 for each."""
        first = [group[0] for group in self.groups]
        weights = np.array([self.table[self.sources[row]].weight for row in first])
        return weights, np.array([share(f"mixture {self.rows[row].id}") for row in first])

    def times(self, epoch: int) -> np.ndarray:
        """(G,) how often `epoch` (from 0) draws each group.

        One of weight w comes floor(w) or ceil(w) times, over many epochs w times on average: of 0.5, one half of the
        groups in one epoch and the other half in the next. With small weights an epoch may draw nothing.
        """
        weights, start = self._odds
        return (np.floor(weights * (epoch + 1) + start) - np.floor(weights * epoch + start)).astype(np.int64)

    def epoch_groups(self, seed: int, epoch: int) -> list[int]:
        """The groups that an epoch draws, shuffled: a pure function of the data, `seed` and `epoch`."""
        drawn = np.repeat(np.arange(len(self.groups)), self.times(epoch))
        return np.random.default_rng([seed, epoch]).permutation(drawn).tolist()

    def epoch_rows(self, seed: int, epoch: int) -> list[int]:
        """The rows of `epoch_groups`, those of a group one after the other."""
        return [row for group in self.epoch_groups(seed, epoch) for row in self.groups[group]]

    def split(self, fraction: float) -> tuple[Self, Self]:
        """(training, validation): about `fraction` of the rows held out by their ids. Raises VlmkitError."""
        if not 0 < fraction < 1:
            raise VlmkitError(f"validation fraction {fraction} is not between 0 and 1", "give for example 0.1")
        out = [held_out(row.id, fraction) for row in self.rows]
        training, validation = (self._only([i for i, o in enumerate(out) if o is side]) for side in (False, True))
        if not training.rows or not validation.rows:
            raise VlmkitError("too few rows to hold some out for validation", "give more data, or --val DATA")
        return training, validation

    def _only(self, rows: Sequence[int]) -> Self:
        return type(self)([self.rows[i] for i in rows], [self.sources[i] for i in rows], self.table)


def share(key: str) -> float:
    """A number between 0 and 1 from `key`, uniform over many keys: 32 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32


def held_out(id: str, fraction: float) -> bool:
    """Whether the row `id` belongs to the `fraction` that is kept for validation."""
    return share(id) < fraction
