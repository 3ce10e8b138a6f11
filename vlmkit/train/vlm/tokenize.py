"""A dialogue as token ids, with a mask of those that the loss is of: replies and their end token.

Prompts and replies are tokenized apart, just as at run time, where the prompt is tokenized and then continued. So the
mask is exact by construction; nothing is looked up in the token ids of the full text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.template import TemplateRefusal, around_reply, render, without_thought
from vlmkit.models.llava.model import IMAGE, Vlm
from vlmkit.train.data.samples import Dialogue, Turn


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """T token ids, one for each picture, and which of them the loss is of."""

    input_ids: np.ndarray  # (T,) int32
    loss_mask: np.ndarray  # (T,) bool

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, part: slice) -> "TokenizedSample":
        return TokenizedSample(self.input_ids[part], self.loss_mask[part])


Part = tuple[str | list[int], bool]  # a text or token ids, and whether the loss is of them


class _Encoder:
    def __init__(self, vlm: Vlm) -> None:
        self.tokenizer: Any = vlm.processor.tokenizer
        self.image = vlm.model.config.image_token_index

    def tokens(self, text: str) -> list[int]:
        """Token ids of `text`, one image token at each `<image>`."""
        return self.joined([(text, False)]).input_ids.tolist()

    def joined(self, parts: list[Part]) -> TokenizedSample:
        """`parts` in order, each tokenized by itself, with one image token at each `<image>`."""
        pieces: list[Part] = []
        for content, is_reply in parts:
            split: Sequence[str | list[int]] = content.split(IMAGE) if isinstance(content, str) else [content]
            for number, piece in enumerate(split):
                pieces += [([self.image], is_reply)] * bool(number) + [(piece, is_reply)] * bool(piece)
        texts = [piece for piece, _ in pieces if isinstance(piece, str)]
        encoded = iter(self._encoded(texts) if texts else [])
        ids = [next(encoded) if isinstance(piece, str) else piece for piece, _ in pieces]
        mask = np.repeat(np.array([is_reply for _, is_reply in pieces], bool), [len(some) for some in ids])
        return TokenizedSample(np.array([token for some in ids for token in some], np.int32), mask)

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        quick = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return self.tokenizer(texts, add_special_tokens=False, **quick)["input_ids"]


class Plain(_Encoder):
    """Stage 1 of LLaVA: the picture, then the caption and the end token; no template."""

    def __call__(self, dialogue: Dialogue) -> list[TokenizedSample]:
        begin = self.tokenizer.bos_token_id
        parts: list[Part] = [([begin] if self.tokenizer.encode("")[:1] == [begin] else [], False)]
        for turn in dialogue.turns:
            parts += [(turn.user, False), (turn.reply, True), ([self.tokenizer.eos_token_id], True)]
        return [self.joined(parts)]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around the texts of a conversation, if it writes the same in every turn."""

    start: tuple[str, str]  # before a system text and behind it; without one, before the first question and ""
    between: str  # before a later question
    ask: str  # behind a question: where the prompt ends
    lead: str  # before a reply
    end: str  # of a reply, learned with it
    gap: str
    last: str  # in place of `lead` before the last reply, where the template adds an empty thought
    close: str  # behind the last gap

    def parts(self, dialogue: Dialogue, stop: list[int]) -> list[Part]:
        """`dialogue` as the slow way makes it; `stop` stands where replies have no end."""
        before, behind = self.start
        begin = before + dialogue.system + behind
        found: list[Part] = []
        for turn in dialogue.turns:
            found += [(begin + turn.user + self.ask, False), (self.lead + turn.reply + self.end, True)]
            found += [(stop, True)] * (not self.end) + [(self.gap, False)]
            begin = self.between
        return found

    def text(self, dialogue: Dialogue) -> str:
        """The whole conversation as the template writes it."""
        texts = [content for content, _ in self.parts(dialogue, []) if isinstance(content, str)]
        reply = dialogue.turns[-1].reply
        return "".join(texts[:-2]) + self.last + reply + self.end + self.gap + self.close


class Chat(_Encoder):
    """The language model's own chat template. Raises VlmkitError if it has none.

    A reply follows the prompt that the template writes at run time, and is learned with the first special token behind
    it, without the empty thought that a template may add. Where a later prompt writes earlier turns otherwise, the
    turns from there on are a sample of their own. Raises TemplateRefusal.

    A template that frames every turn alike renders a conversation once, to see that it does; others twice a turn.
    """

    def __init__(self, vlm: Vlm) -> None:
        super().__init__(vlm)
        if not self.tokenizer.chat_template:
            remedy = "name a chat or instruct model with --llm, or a template with --template"
            raise VlmkitError("the language model has no chat template", remedy)
        added = [str(token.content) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self.special = {*self.tokenizer.all_special_tokens, *added}
        self.stop = [self.tokenizer.eos_token_id]
        self.frame = cache(self._frame)

    def __call__(self, dialogue: Dialogue) -> list[TokenizedSample]:
        frame = self.frame(bool(dialogue.system))
        if frame and self._fits(frame, dialogue):
            return [self.joined(frame.parts(dialogue, self.stop))]
        return [self.joined(parts) for parts in self._turn_by_turn(dialogue)]

    def _fits(self, frame: Frame, dialogue: Dialogue) -> bool:
        if any("think" in turn.user + turn.reply for turn in dialogue.turns):  # templates take thoughts out
            return False
        try:
            return render(self._apply, _messages(dialogue)) == frame.text(dialogue)
        except TemplateRefusal:
            return False

    def _frame(self, system: bool) -> Frame | None:
        """The frame of conversations with or without a `system` text, found in one of three turns."""
        names = [f"NAME{i}" for i in range(6)]
        turns = [Turn(*names[i : i + 2]) for i in range(0, 6, 2)]
        probe = Dialogue("", (), tuple(turns), "SYSTEM0" if system else "")
        try:
            found = self._turn_by_turn(probe)
            whole = render(self._apply, _messages(probe))
        except TemplateRefusal:
            return None
        texts = [content for content, _ in found[0] if isinstance(content, str)]
        if len(found) > 1 or len(texts) != 9:
            return None
        (begin, ask), (lead, end), gap = texts[0].split(names[0]), texts[1].split(names[1]), texts[2]
        between = texts[3].partition(names[2])[0]
        before, _, behind = begin.partition(probe.system) if system else (begin, "", "")
        last, _, tail = whole.rpartition(names[5])
        last = last.rpartition(names[4] + ask)[2]
        frame = Frame((before, behind), between, ask, lead, end, gap, last, tail.removeprefix(end + gap))
        same = frame.parts(probe, self.stop) == found[0] and frame.text(probe) == whole
        return frame if same else None

    def _turn_by_turn(self, dialogue: Dialogue) -> list[list[Part]]:
        """The parts of each sample, with the prompt and the end of each reply rendered anew."""
        samples: list[list[Part]] = []
        parts: list[Part] = []
        messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
        done = ""
        for turn in dialogue.turns:
            messages.append({"role": "user", "content": turn.user})
            prompt = render(partial(self._apply, generation=True), messages)
            lead, tail = around_reply(self._apply, messages, prompt)
            prompt = without_thought(prompt)
            end, gap = self._end(tail)
            if not prompt.startswith(done):
                samples.append(parts)
                parts, done = [], ""
            reply = lead + turn.reply + end
            parts += [(prompt[len(done) :], False), (reply, True)]
            parts += [(self.stop, True)] * (not end) + [(gap, False)]
            done = prompt + reply + gap
            messages.append({"role": "assistant", "content": turn.reply})
        return [*samples, parts]

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


def _messages(dialogue: Dialogue) -> list[dict[str, str]]:
    said = [("system", dialogue.system)] * bool(dialogue.system)
    said += [pair for turn in dialogue.turns for pair in (("user", turn.user), ("assistant", turn.reply))]
    return [{"role": role, "content": content} for role, content in said]


Encode = Plain | Chat
