"""What a BLIP-2 or InstructBLIP is trained on: one picture, one prompt, one reply, as its own processor writes them."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from vlmkit.errors import VlmkitError
from vlmkit.io.pictures import MARK
from vlmkit.io.records import Failed
from vlmkit.io.terminal import Failures, progress, warn
from vlmkit.models.chat.blip2 import Blip2, InstructBlip
from vlmkit.train.data.mixture import Mixture, Ragged
from vlmkit.train.data.samples import Dialogue, Turn
from vlmkit.train.qformer.model import QFormerModel, stop_token
from vlmkit.train.vlm.batches import MicroBatch, Order, SampleRef
from vlmkit.train.vlm.collator import ReadPixels

IGNORED = -100  # a label that the loss is not of
NOT_ONE, SYSTEM, TOO_LONG = "not one picture", "a system text", "prompt does not fit into max-length"


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a sample: (T,) of the language model, (T,) labels or those of a decoder, (Q,) of the Q-Former."""

    input_ids: list[int]
    labels: list[int]
    question: list[int] | None = None
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Encoder:
    """Tokenizes as `vlmkit ask` does at run time, the reply behind its prompt."""

    tokenizer: Any
    question_tokenizer: Any  # of the Q-Former; None where it reads no text
    image: list[int]  # in the place of the picture
    start: list[int]  # of a prompt without text
    stop: int
    has_decoder: bool  # of its own, beside an encoder
    length: int
    question_length: int

    @classmethod
    def of(cls, opened: QFormerModel, length: int) -> "Encoder":
        config, tokenizer = opened.model.config, opened.processor.tokenizer
        begin = config.text_config.bos_token_id
        words = opened.processor.qformer_tokenizer if opened.reads_question else None
        return cls(
            tokenizer,
            words,
            [config.image_token_index] * config.num_query_tokens,
            [] if begin is None else [begin],
            stop_token(opened.model, tokenizer),
            bool(config.text_config.is_encoder_decoder),
            min(length, opened.context or length),
            config.qformer_config.max_position_embeddings,
        )

    def prompt(self, turn: Turn) -> str:
        """A question in the form in which the model is asked; of a caption the prompt that `vlmkit caption` has."""
        text = turn.user.replace(MARK, " ").strip()
        if self.question_tokenizer is None:
            return Blip2.written(text)
        return InstructBlip.written(text or InstructBlip.captions["normal"].prompt)

    def __call__(self, turn: Turn) -> Example | None:
        """None where not even the prompt and one token of the reply fit."""
        prompt = self.prompt(turn)
        before = self.image + (self._ids(prompt) if prompt else self.start)
        question = self.question_tokenizer(prompt).input_ids if self.question_tokenizer else None
        reply = self._reply(prompt, turn.reply)
        room = self.length - (0 if self.has_decoder else len(before))
        if room < 1 or len(before) > self.length or len(question or ()) > self.question_length:
            return None
        is_cut, reply = len(reply) > room, reply[:room]
        if self.has_decoder:
            return Example(before, reply, question, is_cut)
        return Example(before + reply, [IGNORED] * len(before) + reply, question, is_cut)

    def _ids(self, text: str, **how: Any) -> list[int]:
        return self.tokenizer(text, **how).input_ids

    def _reply(self, prompt: str, reply: str) -> list[int]:
        """The tokens of a reply and its end, as they follow the prompt."""
        if self.has_decoder:
            found = self._ids(reply)
            return found if found[-1:] == [self.stop] else [*found, self.stop]
        known = self._ids(prompt)
        whole = self._ids(f"{prompt} {reply}" if prompt else reply)
        apart = whole[: len(known)] != known
        return [*(self._ids(reply, add_special_tokens=False) if apart else whole[len(known) :]), self.stop]


@dataclass(frozen=True, slots=True)
class Samples:
    """The turns of `reading` that can be trained on: `turns` are their numbers within each row."""

    reading: Mixture[Any]
    encode: Encoder
    turns: Ragged
    rows: np.ndarray  # (S,) that each sample is of

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Dialogue, Example]:
        row = self.reading.rows[int(self.rows[place])]
        example = self.encode(row.turns[int(self.turns.values[place])])
        assert example is not None  # `usable` has seen it
        return row, example

    def epoch(self, seed: int, number: int) -> np.ndarray:
        """The samples that an epoch draws, in its order."""
        places = Ragged(np.arange(len(self)), self.turns.ends)
        return places.take(self.reading.epoch_rows(seed, number)).values


def usable(reading: Mixture[Any], encode: Encoder, failures: Failures, quiet: bool) -> Samples:
    """The samples of `reading`, each turn by itself; what is refused or cut is reported. Raises VlmkitError."""
    kept: list[list[int]] = []
    several = 0

    def looked_at() -> Iterator[Failed | None]:
        nonlocal several
        for number, row in enumerate(reading.rows):
            counts = reading.table[reading.sources[number]]
            why = NOT_ONE if len(row.pictures) != 1 else SYSTEM if row.system else ""
            made = [] if why else [encode(turn) for turn in row.turns]
            kept.append([place for place, example in enumerate(made) if example is not None])
            counts.samples += max(0, len(kept[-1]) - 1)
            counts.cut += sum(example.is_cut for example in made if example is not None)
            several += len(kept[-1]) > 1
            if kept[-1]:
                yield None
                continue
            counts.drop_sample(why or TOO_LONG)
            yield Failed(row.id, None, f"its {TOO_LONG}" if not why else f"it has {why}")

    before = sum(counts.cut for counts in reading.table)
    for _ in failures.filter_failures(progress(looked_at(), quiet=quiet, unit="rows")):
        pass
    lengths = np.array([len(some) for some in kept])
    turns = Ragged.of(lengths, np.array([place for some in kept for place in some], np.int64))
    found = Samples(reading, encode, turns, np.repeat(np.arange(len(kept)), lengths))
    if not len(found):
        why = ", ".join(dict.fromkeys(reason for counts in reading.table for reason in counts.lost))
        raise VlmkitError(f"no sample can be trained on: {why}", "give rows of one picture each, or raise --max-length")
    if several:
        warn(
            f"{several} conversations have several turns: each is learned by itself, as the model sees no earlier ones"
        )
    if cut := sum(counts.cut for counts in reading.table) - before:
        failures.incomplete = True
        warn(f"{cut} of {len(found)} samples are longer than {encode.length} tokens and were cut: raise --max-length")
    return found


class SampleDataset(Dataset[list[SampleRef]]):
    """Samples with their pictures, read a micro-batch at a time; as `vlm.collator.GroupDataset`."""

    def __init__(self, samples: Samples, read_pixels: ReadPixels, views: int, seed: int) -> None:
        self.samples, self.read_pixels, self.views, self.seed = samples, read_pixels, views, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, part: list[SampleRef]) -> list[SampleRef]:
        return part

    def refs(self) -> Sequence[SampleRef]:
        """Each sample once, in order."""
        return Order(lambda epoch: np.arange(len(self)), len(self))

    def read(self, ref: SampleRef) -> tuple[str, Example, Tensor]:
        """(id of the row, tokens, pixels (3, H, W)), in a view that depends on seed, epoch and sample."""
        row, example = self.samples[ref.group]
        draw = np.random.default_rng([self.seed, ref.epoch, zlib.crc32(row.id.encode())]).random()
        view = self.views - 1 - int(draw * self.views)
        return row.id, example, self.read_pixels(row.pictures[0], view, row.mirror)

    def read_batch(self, collate: Callable[[list[Any]], dict[str, Any]], parts: MicroBatch) -> dict[str, Any]:
        """The batch of `parts`, or its error: torch passes errors of loader processes on as text alone."""
        try:
            return collate([self.read(ref) for refs in parts for ref in refs])
        except VlmkitError as error:
            return {"error": error}


@dataclass(frozen=True, slots=True)
class Collate:
    """Samples as what the model takes, padded on the right, with `weights`, `names`, `tokens` and `slots`."""

    pad: int
    question_pad: int

    def __call__(self, items: list[tuple[str, Example, Tensor]]) -> dict[str, Any]:
        examples = [example for _, example, _ in items]
        ids, mask = _padded([example.input_ids for example in examples], self.pad)
        labels, _ = _padded([example.labels for example in examples], IGNORED)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if examples[0].question is not None:
            questions, known = _padded([example.question or [] for example in examples], self.question_pad)
            batch |= {"qformer_input_ids": questions, "qformer_attention_mask": known}
        batch["pixel_values"] = torch.stack([pixels for *_, pixels in items])
        counts = {"tokens": int(mask.sum()), "slots": mask.numel(), "names": tuple(name for name, *_ in items)}
        return batch | {"weights": torch.ones(int((labels != IGNORED).sum()))} | counts


def _padded(lists: list[list[int]], value: int) -> tuple[Tensor, Tensor]:
    """(R, T) and its mask."""
    tensors = [torch.tensor(some) for some in lists]
    masks = [torch.ones(len(some), dtype=torch.long) for some in lists]
    return pad_sequence(tensors, True, value), pad_sequence(masks, True, 0)
