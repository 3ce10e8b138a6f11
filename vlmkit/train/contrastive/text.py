"""Captions as tensors: tokenized once, run once through the locked layers, encoded without padding."""

from dataclasses import dataclass

import torch
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

CHUNK = 64  # texts at once while nothing is trained


@dataclass(frozen=True, slots=True)
class Texts:
    """M texts, one after the other: what the first trained layer takes, for each of their T tokens."""

    values: Tensor  # (T,) token ids, or (T, W) float16 outputs of the locked layers
    starts: Tensor  # (M,)
    lengths: Tensor  # (M,)

    def rows(self, which: Tensor, length: int, device: str) -> Tensor:
        """(n, length) ids or (n, length, W) float32 of the texts `which`, all of that length."""
        found = self.values[self.starts[which][:, None] + torch.arange(length)].to(device)
        return found.float() if found.is_floating_point() else found


def layers_of(tower: nn.Module) -> nn.ModuleList | None:
    """The layers of a BERT-like encoder; None for towers built otherwise, which are trained whole or not at all."""
    encoder = getattr(tower, "encoder", None)
    layers = getattr(encoder, "layer", None)
    return layers if isinstance(layers, nn.ModuleList) and hasattr(tower, "embeddings") else None


class TextSide:
    """The text tower of `model` with its tokenizer; the lowest `locked` layers (and embeddings) are not trained."""

    def __init__(self, model: CustomTextCLIP, tokenizer: HFTokenizer, device: str, locked: int) -> None:
        self.text, self.tokenizer, self.device = model.text, tokenizer, device
        layers = layers_of(self.text.transformer)
        self.locked = list(layers)[:locked] if layers is not None else []
        self.trained = list(layers)[locked:] if layers is not None else []

    def prepare(self, captions: list[str]) -> Texts:
        """Tokenize, and run the locked layers."""
        parts: list[Tensor] = []
        for start in range(0, len(captions), 4096):
            ids = self.tokenizer(captions[start : start + 4096])  # (n, context), padded
            parts += [row[row != self.text.config.pad_token_id] for row in ids]
        lengths = torch.tensor([len(part) for part in parts])
        texts = Texts(torch.cat(parts), lengths.cumsum(0) - lengths, lengths)
        if not self.locked:
            return texts
        self.text.eval()
        values = torch.empty(len(texts.values), self.text.config.hidden_size, dtype=torch.float16)
        with torch.inference_mode():
            for some, length in by_length(lengths):
                for which in some.split(CHUNK):
                    hidden = self.text.transformer.embeddings(texts.rows(which, length, self.device))
                    hidden = _through(self.locked, hidden)
                    values[texts.starts[which][:, None] + torch.arange(length)] = hidden.half().cpu()
        return Texts(values, texts.starts, lengths)

    def encode(self, texts: Texts, which: Tensor | None = None) -> Tensor:
        """Unnormalised vectors (n, D) of `which` (n,) texts, or of all. Texts of one length run together."""
        which = torch.arange(len(texts.lengths)) if which is None else which
        places, parts = [], []
        for some, length in by_length(texts.lengths[which]):
            for chosen in some.split(CHUNK if not torch.is_grad_enabled() else len(some)):
                places.append(chosen)
                parts.append(self.text.proj(self._pooled(texts.rows(which[chosen], length, self.device))))
        return torch.cat(parts)[torch.cat(places).argsort().to(self.device)]

    def pooled(self, texts: Texts) -> Tensor:
        """What the head gets of all texts, (M, W), by the tower as it is now, dropout off."""
        self.text.eval()
        found = torch.empty(len(texts.lengths), self.text.config.hidden_size)
        with torch.inference_mode():
            for some, length in by_length(texts.lengths):
                for which in some.split(CHUNK):
                    found[which] = self._pooled(texts.rows(which, length, self.device)).float().cpu()
        return found.to(self.device)

    def _pooled(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            hidden = _through(self.trained, x)
        else:
            hidden = self.text.transformer(input_ids=x, attention_mask=torch.ones_like(x)).last_hidden_state
        whole = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        return self.text.pooler(BaseModelOutput(last_hidden_state=hidden), whole)


def _through(layers: list[nn.Module], hidden: Tensor) -> Tensor:
    for layer in layers:
        out = layer(hidden)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def by_length(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """(positions, length) for each length that occurs, shortest first."""
    order = lengths.argsort(stable=True)
    found, counts = lengths[order].unique_consecutive(return_counts=True)
    return list(zip(order.split(counts.tolist()), found.tolist(), strict=True))
