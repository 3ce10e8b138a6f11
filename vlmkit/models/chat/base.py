"""The base class of the chat models of transformers."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlmkit.errors import VlmkitError, first_line, reason_of
from vlmkit.models.batching import CPU, CUDA_FIRST, BatchSize
from vlmkit.models.boxes import Found
from vlmkit.models.chat.confidence import mean_probability
from vlmkit.models.chat.fewer_pictures import TooLong, noted
from vlmkit.models.chat.reasoning import is_mark, split_reasoning
from vlmkit.models.embedders.base import silence_libraries, torch_device
from vlmkit.models.resolve import Checkpoint
from vlmkit.models.types import Answer, ChatModel, Hardware, Request, RequestError, Sampling


class Row(NamedTuple):
    """The tokens that `generate` returned for one request, and the log probabilities of those that it generated.

    With beams there are none of the second.
    """

    tokens: list[int]
    log_probabilities: list[float]

    def confident(self, answer: Answer) -> Answer:
        """`answer`, made of this row, with its confidence: the mean probability of its tokens."""
        if not self.log_probabilities:
            return answer
        total = sum(self.log_probabilities[: answer.tokens])
        return replace(answer, confidence=mean_probability(total, answer.tokens))


class TransformersChatModel(ChatModel):
    """A chat model of transformers (Wolf et al. 2020), bf16 on CUDA, else float32. No code of its folder is run.

    A subclass defines which requests it refuses, which others form a batch, their inputs, and the parsing of answers.
    """

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware, kind: str = "AutoModelForImageTextToText") -> None:
        import torch

        silence_libraries()
        self._torch = torch
        self.name = checkpoint.name
        self.device = torch_device(hardware.device)
        self.batch = BatchSize(CUDA_FIRST if self.device == "cuda" else CPU)
        model, self._processor, self._missing = self._from_pretrained(checkpoint.folder, kind)
        self._model: Any = model.eval().to(self.device)
        tokenizer = getattr(self._processor, "tokenizer", None)
        if tokenizer is None:
            raise VlmkitError(f"{self.name} has no tokenizer", "download the model again")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self._tokenizer: Any = tokenizer
        self._arguments = {"pad_token_id": tokenizer.pad_token_id}  # of `generate`, each time
        added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = {*tokenizer.all_special_tokens, *added}
        self._skips_special = not any(map(is_mark, self._special))
        self._ends = token_ids(model.generation_config.eos_token_id)

    def _from_pretrained(self, folder: Path, kind: str) -> tuple[Any, Any, list[str]]:
        """The model, by the class `kind` of transformers; its processor; the names of weights that the files lack."""
        import transformers

        dtype = self._torch.bfloat16 if self.device == "cuda" else self._torch.float32
        how = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
        try:
            model, report = getattr(transformers, kind).from_pretrained(folder, **how)
            processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # on damaged files the libraries raise anything
            reason = reason_of(error)
            raise VlmkitError(f"{self.name} cannot be opened ({reason})", "download the model again") from None
        return model, processor, sorted(report["missing_keys"])

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        answers: dict[int, Answer | RequestError] = {}
        batches: dict[Hashable, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            if (reason := self._refusal(request)) is not None:
                answers[number] = RequestError(reason)
            else:
                batches[self._batch_key(request)].append(number)
        for numbers in batches.values():
            answers |= zip(numbers, self._answer_batch([requests[i] for i in numbers], sampling), strict=True)
        return [answers[i] for i in range(len(requests))]

    def _answer_batch(self, requests: list[Request], sampling: Sampling) -> Sequence[Answer | RequestError]:
        """A batch that does not fit into memory, or one of whose requests the processor refuses, is halved."""
        try:
            return self._generate(requests, sampling)
        except RequestError as error:  # about one of them
            if len(requests) == 1:
                less = error.fewer(requests[0]) if isinstance(error, TooLong) else None
                return [error if less is None else noted(self._answer_batch([less], sampling)[0], requests[0], less)]
        except self._torch.OutOfMemoryError:
            if self.device == "cuda":
                self._torch.cuda.empty_cache()
            if len(requests) == 1:
                return [self._out_of_memory()]
            self.batch.too_large(len(requests))
        half = len(requests) // 2
        return [*self._answer_batch(requests[:half], sampling), *self._answer_batch(requests[half:], sampling)]

    def _out_of_memory(self) -> RequestError:
        what = f"it does not fit into the memory of {self.device}"
        return RequestError(what, "take smaller pictures or a smaller model")

    def _refusal(self, request: Request) -> str | None:
        """Why this request cannot be answered."""
        return None

    @abstractmethod
    def _batch_key(self, request: Request) -> Hashable:
        """Equal for requests that go through the model together."""

    @abstractmethod
    def _generate(self, requests: list[Request], sampling: Sampling) -> list[Answer]:
        """The answers to one batch."""

    def _processed(self, **inputs: Any) -> Any:
        """What the processor makes of `inputs`. Raises RequestError where it refuses them."""
        try:
            made = self._processor(**inputs, return_tensors="pt")
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
            what = f"the model's processor refuses it ({first_line(error)})"
            raise RequestError(what, "change the picture or the question") from None
        return made.to(self.device, self._model.dtype)

    def _tokens(
        self, inputs: Mapping[str, Any], requests: list[Request], sampling: Sampling, streamer: Any = None
    ) -> list[Row]:
        """A row of tokens for each request, as `generate` of the library returns them."""
        from vlmkit.models.chat.token_log import TokenLog

        log = TokenLog() if sampling.beams == 1 else None
        how = decoding(sampling) | ({"logits_processor": [log]} if log else {})
        self._torch.manual_seed(sampling.seed + requests[0].number)
        with self._torch.inference_mode():
            made = self._model.generate(**inputs, **self._arguments, streamer=streamer, **how)
            logs = log.of(made) if log else [[] for _ in requests]
        return list(map(Row, made.tolist(), logs))

    def _plain(self, text: str) -> str:
        """`text` without the names of special tokens, such as those of turns or of pictures."""
        return self._without_special(text).strip()

    def _without_special(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, " ")
        return text

    def _answer(self, tokens: list[int], request: Request, thought: str = "") -> Answer:
        """The generated `tokens` as text: a space after `start`, or none, is the tokenizer's choice.

        `thought` is the mark with which the prompt began what the model thinks aloud.
        """
        tokens, finish, count = self._cut(tokens)
        before = self._tokenizer(request.start, add_special_tokens=False).input_ids if request.start else []
        skips = self._skips_special
        known, text = (self._tokenizer.decode(ids, skip_special_tokens=skips) for ids in (before, before + tokens))
        reasoning, answer = split_reasoning(thought + request.start + text.removeprefix(known), unopened=False)
        if not skips:
            reasoning, answer = self._plain(reasoning), self._plain(answer)
        return Answer(answer, finish, count, reasoning=reasoning)

    def _answer_boxes(self, tokens: list[int], find: Callable[[str], Found], start: str = "") -> Answer:
        """The boxes that `find` finds in the text, in which special tokens may be a part of them."""
        tokens, finish, count = self._cut(tokens)
        boxes, note = find(start + self._tokenizer.decode(tokens, skip_special_tokens=False))
        return Answer(", ".join(box["label"] for box in boxes), finish, count, boxes, note)

    def _cut(self, tokens: list[int]) -> tuple[list[int], str, int]:
        """(tokens before the end token, finish, number of those generated)."""
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        return tokens[:end], "length" if end is None else "stop", len(tokens) if end is None else end + 1


def decoding(sampling: Sampling) -> dict[str, Any]:
    """The arguments of `generate` that decide how tokens are chosen; none is left to the model's own files."""
    how: dict[str, Any] = {"max_new_tokens": sampling.max_tokens, "num_beams": sampling.beams}
    if sampling.temperature > 0:
        return how | {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    how |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.beams > 1:
        # Without the second, the probability that suppressed tokens would have had counts against a beam.
        how |= {"length_penalty": sampling.length_penalty, "renormalize_logits": True}
    return how


def token_ids(found: int | list[int] | None) -> set[int]:
    """A list of tokens from a configuration's one or several."""
    return set(found) if isinstance(found, list) else set() if found is None else {found}
