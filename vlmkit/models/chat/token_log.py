"""How probable the tokens were that `generate` of transformers chose, noted as it chooses them."""

from typing import Any

import torch
from transformers import LogitsProcessor


class TokenLog(LogitsProcessor):
    """Notes the log probability of each generated token, before any temperature; of beams it knows nothing.

    Each call of a step tells what was chosen in the step before; one distribution is held at a time.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []  # (B,) each
        self._offered: torch.Tensor | None = None  # (B, V)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """`scores` (B, V) unchanged; `input_ids` (B, L) end with what was chosen."""
        self._note(input_ids)
        self._offered = scores.float().log_softmax(-1)
        return scores

    def _note(self, tokens: torch.Tensor) -> None:
        if self._offered is not None:
            self._steps.append(self._offered.gather(1, tokens[:, -1:])[:, 0])

    def of(self, tokens: torch.Tensor) -> list[list[float]]:
        """For each row of what `generate` returned, (B, L), the log probabilities of its generated tokens."""
        self._note(tokens)
        return torch.stack(self._steps, 1).tolist() if self._steps else [[] for _ in tokens]
