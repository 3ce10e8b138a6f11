"""Fits heads: logistic and ridge regression on standardised vectors, with k-fold figures of the whole procedure."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from vlmkit.metrics.probabilities import auroc, calibration_error, recalls_and_f1, spearman
from vlmkit.models.head import CLASS, CLASSES, NUMBER, activated

STRENGTHS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)  # of L2, the strongest first
MANY = 5000  # rows from which on one part is enough to choose the strength by
ITERATIONS = 200  # of L-BFGS
GRADIENT = 1e-5  # at which it ends
A_THREAD = 1_000_000  # numbers that are worth a thread
LEAST_DEVIATION = 1e-6  # of a feature that is not constant


@dataclass(frozen=True, slots=True)
class Problem:
    """What is learned from N vectors `x` (N, D) float64: `y` (N, L) float64, 1 and 0, or numbers with L = 1.

    `names` are the L labels. With `balance` each class counts the same. `l2` is None where it is to be chosen.
    """

    x: np.ndarray
    y: np.ndarray
    target: str
    names: list[str]
    folds: int
    seed: int
    balance: bool = False
    l2: float | None = None

    def parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """`rows` in as many parts as there are folds, each with its share of every class (stratified)."""
        order = np.random.default_rng(self.seed).permutation(len(rows))
        keys = self.y[rows][order]
        if self.target != NUMBER:
            order = order[np.lexsort(keys.T)]
        return [np.sort(rows[order[start :: self.folds]]) for start in range(self.folds)]


def fitted(problem: Problem, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(weight (L, D), bias (L), strength of L2) of the head on `rows`; the strength is the one that predicts parts of
    them best from the others.
    """
    if problem.l2 is not None:
        return *next(_path(problem, rows, [problem.l2])), problem.l2
    parts = problem.parts(rows)[: 1 if len(rows) > MANY else None]
    paths = zip(*(_path(problem, np.setdiff1d(rows, part), STRENGTHS) for part in parts), strict=True)
    best, least = STRENGTHS[0], math.inf
    for strength, heads in zip(STRENGTHS, paths, strict=False):
        loss = sum(len(part) * _loss(problem, part, *head) for part, head in zip(parts, heads, strict=True))
        if loss > least:
            break
        best, least = strength, loss
    return *[*_path(problem, rows, STRENGTHS[: STRENGTHS.index(best) + 1])][-1], best


def _path(problem: Problem, rows: np.ndarray, strengths: Sequence[float]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The head (weight, bias) on `rows` for each strength, in terms of the vectors as they are."""
    mean, deviation = problem.x[rows].mean(0), problem.x[rows].std(0)
    deviation[deviation < LEAST_DEVIATION] = 1.0
    x, y = torch.from_numpy((problem.x[rows] - mean) / deviation), torch.from_numpy(problem.y[rows])
    for weight, bias in _ridge(x, y, strengths) if problem.target == NUMBER else _logistic(problem, x, y, strengths):
        scaled = weight.numpy() / deviation
        yield scaled, bias.numpy() - scaled @ mean


def _ridge(x: Tensor, y: Tensor, strengths: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """Minimises half the mean squared error and half the strength times the squared weights (Hoerl, Kennard, 1970)."""
    bias = y.mean(0)
    square, product = x.T @ x / len(x), x.T @ (y - bias) / len(x)
    for strength in strengths:
        yield torch.linalg.solve(square + strength * torch.eye(len(square), dtype=x.dtype), product).T, bias


def _logistic(problem: Problem, x: Tensor, y: Tensor, strengths: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """Minimises the mean cross-entropy and half the strength times the squared weights, by L-BFGS."""
    weight, bias = (
        torch.zeros(size, dtype=x.dtype, requires_grad=True) for size in ((y.shape[1], x.shape[1]), (y.shape[1],))
    )
    weights = _row_weights(problem, y)
    for strength in strengths:
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=ITERATIONS, tolerance_grad=GRADIENT, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure(strength: float = strength, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (
                _cross_entropy(problem.target, x @ weight.T + bias, y, weights) + strength / 2 * weight.square().sum()
            )
            loss.backward()
            return loss

        optimizer.step(closure)
        yield weight.detach().clone(), bias.detach().clone()


def _row_weights(problem: Problem, y: Tensor) -> Tensor:
    """(N, L): 1, or with `balance` the inverse of how frequent a class is, and what is not of it; the mean is 1."""
    if not problem.balance:
        return torch.ones_like(y)
    share = y.mean(0)
    if problem.target == CLASS:
        present = share > 0
        return (y / share.clamp(min=1e-9)).sum(1, keepdim=True).expand_as(y) / present.sum()
    return torch.where(y > 0, 0.5 / share.clamp(min=1e-9), 0.5 / (1 - share).clamp(min=1e-9))


def _cross_entropy(target: str, logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over the rows; of several classes their sum."""
    if target == CLASS:
        return (cross_entropy(logits, y, reduction="none") * weights[:, 0]).mean()
    return binary_cross_entropy_with_logits(logits, y, weights, reduction="none").sum(1).mean()


def _loss(problem: Problem, rows: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> float:
    """How badly a head predicts `rows`: cross-entropy, or mean squared error."""
    logits, y = torch.from_numpy(problem.x[rows] @ weight.T + bias), torch.from_numpy(problem.y[rows])
    if problem.target == NUMBER:
        return float((logits - y).square().mean())
    return float(_cross_entropy(problem.target, logits, y, _row_weights(problem, y)))


@contextmanager
def worthwhile_threads(numbers: int) -> Iterator[None]:
    """As many threads of torch as so many numbers are worth: more would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, numbers // A_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fold_figures(problem: Problem) -> Iterator[dict[str, Any]]:
    """For each fold the figures of a head fitted to the others, its strength chosen on them alone."""
    rows = np.arange(len(problem.x))
    for number, part in enumerate(problem.parts(rows), 1):
        weight, bias, l2 = fitted(problem, np.setdiff1d(rows, part))
        predicted = activated(problem.target, problem.x[part] @ weight.T + bias)
        yield {"fold": number, "rows": len(part), "l2": l2} | figures(problem, predicted, problem.y[part])


def figures(problem: Problem, predicted: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The figures of predictions (n, L) for `y` (n, L); what is not defined for these rows is None."""
    if problem.target == NUMBER:
        error, spread = ((predicted - y) ** 2).sum(), ((y - y.mean()) ** 2).sum()
        r2 = float(1 - error / spread) if spread else None
        return {"r2": r2, "spearman": spearman(predicted[:, 0], y[:, 0]), "mae": float(np.abs(predicted - y).mean())}
    truth = y > 0
    columns = zip(problem.names, predicted.T, truth.T, strict=True)
    areas = {name: auroc(scores, positive) for name, scores, positive in columns}
    if problem.target == CLASSES:
        said = predicted >= 0.5
        _, f1 = recalls_and_f1(said, truth)
        error = calibration_error(predicted.ravel(), truth.ravel())
        return {
            "exact": float((said == truth).all(1).mean()),
            "macro_f1": float(f1.mean()),
            "auroc": areas,
            "ece": error,
        }
    said = np.eye(len(problem.names), dtype=bool)[predicted.argmax(1)]
    right = (said & truth).any(1)
    recall, f1 = recalls_and_f1(said, truth)
    known = (said | truth).any(0)
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.nanmean(recall)),
        "macro_f1": float(f1[known].mean()),
        "auroc": areas,
        "ece": calibration_error(predicted.max(1), right),
    }


def summary(folds: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the folds of each figure, with `_sd` its standard deviation, and of each AUROC the mean."""
    found: dict[str, Any] = {"folds": len(folds), "rows": sum(fold["rows"] for fold in folds)}
    for name, first in folds[0].items():
        if isinstance(first, dict):
            found[name] = {label: _mean([fold[name][label] for fold in folds]) for label in first}
        elif name not in ("fold", "rows", "l2"):
            values = [fold[name] for fold in folds if fold[name] is not None]
            found |= {name: _mean(values), f"{name}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}
    return found


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
