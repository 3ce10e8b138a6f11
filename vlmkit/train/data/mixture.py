"""Mixtures of several DATA with weights: which rows an epoch draws, and which are held out for validation.

Hashes of the ids decide, so nothing shifts as data grow or come in another order.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.train.data.report import Counts
from vlmkit.train.data.store import COLUMN, Row, Stored, columns_of, share32

GROUP = 16  # dialogues about one picture that stay together
WEIGHTED = re.compile(r"(\d+(?:\.\d*)?|\.\d+):(.+)", re.DOTALL)
SHARES = 2.0**32
KEY = 0x9E3779B97F4A7C15  # odd: what is multiplied by it stays different


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


@dataclass(frozen=True, slots=True)
class Ragged(Sequence[list[int]]):
    """Lists of numbers, one behind the other in `values`; `ends` (G,) are where each ends."""

    values: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, values: np.ndarray) -> "Ragged":
        return cls(values, np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: Any) -> Any:
        start = self.ends[number - 1] if number else 0
        return self.values[start : self.ends[number]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.ends, prepend=0)

    def take(self, numbers: np.ndarray) -> "Ragged":
        """The lists of these `numbers`, in their order."""
        lengths = self.lengths[numbers]
        ends = np.cumsum(lengths)
        places = np.repeat(self.ends[numbers] - ends, lengths) + np.arange(lengths.sum())
        return Ragged(self.values[places], ends)


def alike(keys: np.ndarray, most: int, alone: np.ndarray | bool = False) -> Ragged:
    """The places of equal `keys` (R,), at most `most` together, in order of appearance; each on its own if `alone`."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    within = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    begins = np.flatnonzero((within % most == 0) | np.broadcast_to(alone, keys.shape)[order])
    found = Ragged.of(np.diff(begins, append=len(order)), order)
    return found.take(np.argsort(order[begins]))


@dataclass(frozen=True)
class Mixture(Generic[Row]):
    """The rows of all DATA in order, the number of the DATA that each one is from, and the counts of each DATA."""

    rows: Sequence[Row]
    sources: Sequence[int] | np.ndarray
    table: list[Counts]

    @cached_property
    def columns(self) -> np.ndarray:
        """(R,) COLUMN: what draws need to know of each row."""
        if isinstance(self.rows, Stored):
            return self.rows.columns
        found = [columns_of(repr(row.pictures).encode() if row.pictures else b"", row.id) for row in self.rows]
        return np.array([(0, 0, s, *c) for s, c in zip(self.sources, found, strict=True)], COLUMN)

    @cached_property
    def groups(self) -> Ragged:
        """Numbers of rows with equal pictures and weight, at most GROUP together, in order of appearance.

        Rows without pictures stand alone.
        """
        pictures = self.columns["pictures"]
        _, weight = np.unique([counts.weight for counts in self.table], return_inverse=True)
        keys = pictures * np.uint64(KEY) + weight[np.asarray(self.sources, np.int64)].astype(np.uint64)
        return alike(keys, GROUP, pictures == 0)

    @cached_property
    def _odds(self) -> tuple[np.ndarray, np.ndarray]:
        """(G,) weights of the groups, (G,) a number between 0 and 1 for each."""
        first = self.groups.values[self.groups.ends - self.groups.lengths]
        weights = np.array([counts.weight for counts in self.table])
        return weights[np.asarray(self.sources, np.int64)[first]], self.columns["odds"][first] / SHARES

    def times(self, epoch: int) -> np.ndarray:
        """(G,) how often `epoch` (from 0) draws each group.

        One of weight w comes floor(w) or ceil(w) times, over many epochs w times on average: of 0.5, one half of the
        groups in one epoch and the other half in the next. With small weights an epoch may draw nothing.
        """
        weights, start = self._odds
        return (np.floor(weights * (epoch + 1) + start) - np.floor(weights * epoch + start)).astype(np.int64)

    def epoch_groups(self, seed: int, epoch: int) -> np.ndarray:
        """The groups that an epoch draws, shuffled: a pure function of the data, `seed` and `epoch`."""
        drawn = np.repeat(np.arange(len(self.groups)), self.times(epoch))
        return np.random.default_rng([seed, epoch]).permutation(drawn)

    def epoch_rows(self, seed: int, epoch: int) -> np.ndarray:
        """The rows of `epoch_groups`, those of a group one after the other."""
        return self.groups.take(self.epoch_groups(seed, epoch)).values

    def split(self, fraction: float) -> tuple[Self, Self]:
        """(training, validation): about `fraction` of the rows held out by their ids. Raises VlmkitError."""
        if not 0 < fraction < 1:
            raise VlmkitError(f"validation fraction {fraction} is not between 0 and 1", "give for example 0.1")
        out = self.columns["id"] / SHARES < fraction
        training, validation = (self._only(np.flatnonzero(out == side)) for side in (False, True))
        if not len(training.rows) or not len(validation.rows):
            raise VlmkitError("too few rows to hold some out for validation", "give more data, or --val DATA")
        return training, validation

    def _only(self, numbers: np.ndarray) -> Self:
        rows = self.rows.only(numbers) if isinstance(self.rows, Stored) else [self.rows[i] for i in numbers]
        return type(self)(rows, np.asarray(self.sources)[numbers], self.table)


def share(key: str) -> float:
    """A number between 0 and 1 from `key`, uniform over many keys."""
    return share32(key) / SHARES


def held_out(id: str, fraction: float) -> bool:
    """Whether the row `id` belongs to the `fraction` that is kept for validation."""
    return share(id) < fraction
