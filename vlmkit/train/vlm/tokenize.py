"""A dialogue as token ids, with a mask of what is learned: replies and their end token, nothing else.

Prompts and replies are tokenized apart, just as at run time, where the prompt is tokenized and then continued. So the
mask is exact by construction; nothing is looked up in a tokenized whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.models.llava.model import IMAGE, Vlm
from vlmkit.train.data.samples import Dialogue


@dataclass(frozen=True, slots=True)
class Sequence:
    """T token ids, one for each picture, and which of them are learned."""

    ids: np.ndarray  # (T,) int32
    learned: np.ndarray  # (T,) bool

    def start(self, length: int) -> "Sequence":
        """Its first `length` tokens."""
        return Sequence(self.ids[:length], self.learned[:length])

    def after(self, length: int) -> "Sequence":
        """What follows its first `length` tokens."""
        return Sequence(self.ids[length:], self.learned[length:])


Encode = Callable[[Dialogue], Sequence]


class _Building:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.learned: list[bool] = []

    def add(self, ids: list[int], learned: bool) -> None:
        self.ids += ids
        self.learned += [learned] * len(ids)

    def done(self) -> Sequence:
        return Sequence(np.array(self.ids, np.int32), np.array(self.learned, bool))


class Plain:
    """Stage 1 of LLaVA: the picture, then the caption and the end token; no template."""

    def __init__(self, vlm: Vlm) -> None:
        self.tokens = _Tokens(vlm)

    def __call__(self, dialogue: Dialogue) -> Sequence:
        found = _Building()
        found.add(self.tokens.start(), learned=False)
        for turn in dialogue.turns:
            found.add(self.tokens.of(turn.user), learned=False)
            found.add([*self.tokens.of(turn.reply), self.tokens.tokenizer.eos_token_id], learned=True)
        return found.done()


class Chat:
    """The language model's own chat template. Raises VlmkitError if it has none."""

    def __init__(self, vlm: Vlm) -> None:
        self.tokens = _Tokens(vlm)
        if not self.tokens.tokenizer.chat_template:
            raise VlmkitError("the language model has no chat template", "name a chat or instruct model with --llm")

    def __call__(self, dialogue: Dialogue) -> Sequence:
        found = _Building()
        messages: list[dict[str, str]] = []
        if dialogue.system:
            messages.append({"role": "system", "content": dialogue.system})
        done = ""
        for turn in dialogue.turns:
            messages.append({"role": "user", "content": turn.user})
            asked = self._render(messages, done, generation=True)
            messages.append({"role": "assistant", "content": turn.reply})
            replied = self._render(messages, done + asked)
            ended = replied.rstrip()
            found.add(self.tokens.of(asked), learned=False)
            found.add(self.tokens.of(ended), learned=True)
            if ended.endswith(turn.reply.strip()):  # this template writes no end token
                found.add([self.tokens.tokenizer.eos_token_id], learned=True)
            found.add(self.tokens.of(replied[len(ended) :]), learned=False)
            done += asked + replied
        return found.done()

    def _render(self, messages: list[dict[str, str]], done: str, generation: bool = False) -> str:
        whole = self.tokens.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        if not whole.startswith(done):
            raise VlmkitError("the chat template rewrites earlier turns", "train on one turn a sample, or change it")
        return whole[len(done) :]


class _Tokens:
    def __init__(self, vlm: Vlm) -> None:
        self.tokenizer: Any = vlm.processor.tokenizer
        self.image = vlm.model.config.image_token_index

    def start(self) -> list[int]:
        """What the tokenizer itself puts before a text."""
        mark = self.tokenizer.bos_token_id
        return [mark] if self.tokenizer.encode("")[:1] == [mark] else []

    def of(self, text: str) -> list[int]:
        """Token ids of `text`, one image token at each mark."""
        ids: list[int] = []
        for number, part in enumerate(text.split(IMAGE)):
            if number:
                ids.append(self.image)
            if part:
                ids += self.tokenizer.encode(part, add_special_tokens=False)
        return ids
