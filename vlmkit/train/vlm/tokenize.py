"""A dialogue as token ids, with a mask of those that the loss is of: replies and their end token.

Prompts and replies are tokenized apart, just as at run time, where the prompt is tokenized and then continued. So the
mask is exact by construction; nothing is looked up in the token ids of the full text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.template import around_reply, render, without_thought
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


Encode = Callable[[Dialogue], list[TokenizedSample]]


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

    def __call__(self, dialogue: Dialogue) -> list[TokenizedSample]:
        begin = self.tokenizer.bos_token_id
        parts = [([begin] if self.tokenizer.encode("")[:1] == [begin] else [], False)]
        for turn in dialogue.turns:
            parts += [(self.tokens(turn.user), False)]
            parts += [([*self.tokens(turn.reply), self.tokenizer.eos_token_id], True)]
        return [TokenizedSample.joined(parts)]


class Chat(_Encoder):
    """The language model's own chat template. Raises VlmkitError if it has none.

    A reply follows the prompt that the template writes at run time, and is learned with the first special token behind
    it, without the empty thought that a template may add. Where a later prompt writes earlier turns otherwise, the
    turns from there on are a sample of their own. Raises TemplateRefusal.
    """

    def __init__(self, vlm: Vlm) -> None:
        super().__init__(vlm)
        if not self.tokenizer.chat_template:
            raise VlmkitError("the language model has no chat template", "name a chat or instruct model with --llm")
        added = [str(token.content) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self.special = {*self.tokenizer.all_special_tokens, *added}

    def __call__(self, dialogue: Dialogue) -> list[TokenizedSample]:
        samples: list[TokenizedSample] = []
        parts: list[tuple[list[int], bool]] = []
        messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
        done = ""
        for turn in dialogue.turns:
            messages.append({"role": "user", "content": turn.user})
            prompt = render(partial(self._apply, generation=True), messages)
            lead, tail = around_reply(self._apply, messages, prompt)
            prompt = without_thought(prompt)
            end, gap = self._end(tail)
            if not prompt.startswith(done):
                samples.append(TokenizedSample.joined(parts))
                parts, done = [], ""
            reply = lead + turn.reply + end
            parts += [(self.tokens(prompt[len(done) :]), False), (self.tokens(reply), True)]
            if not end:
                parts.append(([self.tokenizer.eos_token_id], True))
            parts.append((self.tokens(gap), False))
            done = prompt + reply + gap
            messages.append({"role": "assistant", "content": turn.reply})
        return [*samples, TokenizedSample.joined(parts)]

    def stop_token(self) -> int | None:
        """The special token that ends a reply; None where the template writes none."""
        question = [{"role": "user", "content": "?"}]
        end, _ = self._end(
            around_reply(self._apply, question, render(partial(self._apply, generation=True), question))[1]
        )
        last = self.tokens(end)[-1:]
        return last[0] if last and end.endswith(tuple(self.special)) else None

    def _apply(self, messages: list[dict[str, Any]], generation: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)

    def _end(self, tail: str) -> tuple[str, str]:
        """(what ends a reply, white space behind it) of `tail`, what the template writes behind one."""
        ends = [tail.index(token) + len(token) for token in self.special if token in tail]
        end = tail[: min(ends)] if ends else tail.rstrip()
        rest = tail[len(end) :]
        return end, rest[: len(rest) - len(rest.lstrip())]
