"""How sure a model is of what it says, from 0 to 1, by the probabilities of the tokens that it chose."""

import math

DIGITS = 2  # further ones change with the batch and the number of threads


def mean_probability(log_probability: float, tokens: int, digits: int = DIGITS) -> float | None:
    """The geometric mean of the probabilities of `tokens`, of whose logarithms `log_probability` is the sum."""
    return round(math.exp(min(0.0, log_probability / tokens)), digits) if tokens else None


def calibrated(log_probability: float, bias: float, slope: float) -> float:
    """How often answers of that log probability are right: Platt scaling (Platt 1999) of the odds of the whole answer.

    `bias` and `slope` are fitted to answers that are known to be right or wrong.
    """
    return round(1 / (1 + math.exp(-(bias + slope * log_odds(log_probability)))), DIGITS)


def log_odds(log_probability: float) -> float:
    """log(p / (1 - p)) of log p; that of a p so close to 1 that it cannot be told from it is limited."""
    return log_probability - math.log(max(-math.expm1(log_probability), 1e-6))
