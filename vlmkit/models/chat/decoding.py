"""Decoding without PyTorch: greedy, random (nucleus sampling), or beam search."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    # (tokens (R,), rows (R,) of the call before that they follow) -> logits (R, V)
    Step = Callable[["np.ndarray", "np.ndarray"], "np.ndarray"]


class Generated(NamedTuple):
    """Tokens without the end token, whether it was generated, and the sum of the log probabilities of them all."""

    tokens: list[int]
    ended: bool
    log_probability: float


def decode(
    step: "Step",
    logits: "np.ndarray",
    choose: "Callable[[np.ndarray, int], int]",
    end: int,
    limits: list[int],
    heard: Callable[[int], None] | None = None,
) -> list[Generated]:
    """A reply for each row of `logits` (N, V), at most `limits[i]` tokens; `choose(logits (V,), i)` gives the next.

    `heard` is called with each of these as it comes.
    """
    import numpy as np

    tokens: list[list[int]] = [[] for _ in logits]
    ended = [False] * len(logits)
    sums = [0.0] * len(logits)
    active = list(range(len(logits)))
    while active:
        chosen = [choose(row, i) for row, i in zip(logits, active, strict=True)]
        scores = _log_softmax(logits)
        rows = []
        for row, (i, token) in enumerate(zip(active, chosen, strict=True)):
            sums[i] += float(scores[row, token])
            if token == end:
                ended[i] = True
                continue
            tokens[i].append(token)
            if heard is not None:
                heard(token)
            if len(tokens[i]) < limits[i]:
                rows.append(row)
        active = [active[row] for row in rows]
        if active:
            logits = step(np.array([chosen[row] for row in rows]), np.array(rows))
    return [Generated(*one) for one in zip(tokens, ended, sums, strict=True)]


def greedy(logits: "np.ndarray", _: int) -> int:
    return int(logits.argmax())


def sampler(
    temperature: float, top_p: float, generators: "list[np.random.Generator]"
) -> "Callable[[np.ndarray, int], int]":
    """Chooses at random among the `nucleus`; row i draws from `generators[i]`."""

    def choose(logits: "np.ndarray", i: int) -> int:
        tokens, shares = nucleus(logits, temperature, top_p)
        return int(generators[i].choice(tokens, p=shares))

    return choose


def nucleus(logits: "np.ndarray", temperature: float, top_p: float) -> "tuple[np.ndarray, np.ndarray]":
    """The fewest tokens whose softmax(logits / temperature) add up to `top_p`, most probable first, and their shares.

    Holtzman and others, 2020: The Curious Case of Neural Text Degeneration.
    """
    import numpy as np

    odds = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    needed = np.flatnonzero(odds >= (1 - top_p) * odds.sum() / len(odds))  # what is below adds up to less than the rest
    order = needed[np.argsort(-odds[needed], kind="stable")]
    reached = (odds[order] / odds.sum()).cumsum()
    kept = order[: int(np.searchsorted(reached, top_p)) + 1]
    return kept, odds[kept] / odds[kept].sum()


class Beam(NamedTuple):
    score: float  # sum of log probabilities
    tokens: list[int]
    row: int = 0  # of the last call, which it follows


class Search:
    """The beams of one request, as transformers' `generate` keeps them with `early_stopping=False`."""

    def __init__(self, beams: int, length_penalty: float, end: int, limit: int) -> None:
        self.beams, self.penalty, self.end, self.limit = beams, length_penalty, end, limit
        self.running = [Beam(0.0, [])]
        self.finished: list[tuple[float, Generated]] = []

    def grow(self, scores: "np.ndarray") -> None:
        """Take the best continuations, by the scores (rows of `running`, V) of all."""
        flat = scores.ravel()
        best = _best(flat, 2 * self.beams)
        length = len(self.running[0].tokens) + 1
        going = []
        for rank, place in enumerate(best.tolist()):
            row, token = divmod(place, scores.shape[1])
            before, score = self.running[row], float(flat[place])
            if token == self.end or length == self.limit:
                if rank < self.beams:
                    made = before.tokens if token == self.end else [*before.tokens, token]
                    self.finished.append((score / length**self.penalty, Generated(made, token == self.end, score)))
            else:
                going.append(Beam(score, [*before.tokens, token], before.row))
        self.finished = sorted(self.finished, key=lambda one: -one[0])[: self.beams]
        self.running = going[: self.beams]
        if self.running and len(self.finished) == self.beams:
            best_to_come = self.running[0].score / length**self.penalty
            self.running = self.running if best_to_come > self.finished[-1][0] else []


def beam_search(
    step: "Step",
    logits: "np.ndarray",
    end: int,
    limits: list[int],
    bare: list[int],
    *,
    beams: int,
    length_penalty: float,
) -> list[list[tuple[float, Generated]]]:
    """For each row of `logits` (N, V) `beams` replies, best first, by log probability / length ** `length_penalty`.

    Those of the rows `bare` have at least one token, as with `min_new_tokens=1` of transformers.
    """
    import numpy as np

    searches = [Search(beams, length_penalty, end, limit) for limit in limits]
    active = searches
    scores = _log_softmax(logits)
    scores[bare, end] = -np.inf
    while True:
        row = 0
        scores = scores + np.array([[b.score] for s in active for b in s.running], np.float32)
        for search in active:
            count = len(search.running)
            search.running = [beam._replace(row=row + i) for i, beam in enumerate(search.running)]
            search.grow(scores[row : row + count])
            row += count
        active = [search for search in active if search.running]
        if not active:
            return [search.finished for search in searches]
        beams_now = [beam for search in active for beam in search.running]
        logits = step(np.array([beam.tokens[-1] for beam in beams_now]), np.array([beam.row for beam in beams_now]))
        scores = _log_softmax(logits)


def _best(scores: "np.ndarray", count: int) -> "np.ndarray":
    """The places of the `count` greatest `scores`, greatest first: they are at least what so many blocks reach."""
    import numpy as np

    block = max(1, len(scores) // (8 * count))
    most = scores[: len(scores) // block * block].reshape(-1, block).max(1)
    some = np.flatnonzero(scores >= np.partition(most, -count)[-count])
    return some[(-scores[some]).argsort(kind="stable")[:count]]


def _log_softmax(logits: "np.ndarray") -> "np.ndarray":
    import numpy as np

    lower = logits - logits.max(1, keepdims=True)
    return lower - np.log(np.exp(lower).sum(1, keepdims=True))
