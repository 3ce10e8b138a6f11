"""A dialogue as token ids, with a mask of those that the loss is of: replies and their end token.

Prompts and replies are tokenized apart, just as at run time, where the prompt is tokenized and then continued. So the
mask is exact by construction; nothing is looked up in the token ids of the full text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.models.llava.model import IMAGE, Vlm
from vlmkit.train.data.samples import Dialogue


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """T token ids, one for each picture, and which of them the loss is of."""

    input_ids: np.ndarray  # (T,) int32
    loss_mask: np.ndarray  # (T,) bool

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, part: slice) -> "TokenizedSample":
        return TokenizedSample(self.input_ids[part], self.loss_mask[part])

    @classmethod
    def joined(cls, parts: list[tuple[list[int], bool]]) -> "TokenizedSample":
        """Of parts in order: token ids, and whether the loss is of them."""
        ids = np.array([token for tokens, _ in parts for token in tokens], np.int32)
        return cls(ids, np.repeat([is_reply for _, is_reply in parts], [len(tokens) for tokens, _ in parts]))


Encode = Callable[[Dialogue], TokenizedSample]


class _Encoder:
    def __init__(self, vlm: Vlm) -> None:
        self.tokenizer: Any = vlm.processor.tokenizer
        self.image = vlm.model.config.image_token_index

    def tokens(self, text: str) -> list[int]:
        """Token ids of `text`, one image token at each `<image>`."""
        ids: list[int] = []
        for number, part in enumerate(text.split(IMAGE)):
            if number:
                ids.append(self.image)
            if part:
                ids += self.tokenizer.encode(part, add_special_tokens=False)
        return ids


class Plain(_Encoder):
    """Stage 1 of LLaVA: the picture, then the caption and the end token; no template."""

    def __call__(self, dialogue: Dialogue) -> TokenizedSample:
        begin = self.tokenizer.bos_token_id
        parts = [([begin] if self.tokenizer.encode("")[:1] == [begin] else [], False)]
        for turn in dialogue.turns:
            parts += [(self.tokens(turn.user), False)]
            parts += [([*self.tokens(turn.reply), self.tokenizer.eos_token_id], True)]
        return TokenizedSample.joined(parts)


class Chat(_Encoder):
    """The language model's own chat template. Raises VlmkitError if it has none."""

    def __init__(self, vlm: Vlm) -> None:
        super().__init__(vlm)
        if not self.tokenizer.chat_template:
            raise VlmkitError("the language model has no chat template", "name a chat or instruct model with --llm")

    def __call__(self, dialogue: Dialogue) -> TokenizedSample:
        parts: list[tuple[list[int], bool]] = []
        messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
        done = ""
        for turn in dialogue.turns:
            messages.append({"role": "user", "content": turn.user})
            prompt = self._render(messages, done, generation=True)
            messages.append({"role": "assistant", "content": turn.reply})
            reply = self._render(messages, done + prompt)
            ended = reply.rstrip()
            parts += [(self.tokens(prompt), False), (self.tokens(ended), True)]
            if ended.endswith(turn.reply.strip()):  # this template writes no end token
                parts.append(([self.tokenizer.eos_token_id], True))
            parts.append((self.tokens(reply[len(ended) :]), False))
            done += prompt + reply
        return TokenizedSample.joined(parts)

    def _render(self, messages: list[dict[str, str]], done: str, generation: bool = False) -> str:
        """What the template writes after `done`."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        if not text.startswith(done):
            raise VlmkitError("the chat template rewrites earlier turns", "train on one turn a sample, or change it")
        return text[len(done) :]
