"""What all chat models of transformers have in common: opening them, asking them in batches, choosing words."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.models import Hardware
from vlmkit.models.batch import CPU, CUDA_FIRST, BatchSize
from vlmkit.models.chat import Answer, Request, Sampling, Unanswerable
from vlmkit.models.find import Checkpoint
from vlmkit.models.torch_embedder import hush, torch_device

if TYPE_CHECKING:
    from PIL.Image import Image


class TransformersTalker:
    """A chat model of transformers (Wolf et al. 2020), bf16 on CUDA, else float32. No code of its folder is run.

    A family of models says which requests it refuses, which of the others go through it together, and how they do.
    """

    size: int | None = None
    tasks: Collection[str] = ("answer",)

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware, kind: str = "AutoModelForImageTextToText") -> None:
        import torch

        hush()
        self._torch = torch
        self.device = torch_device(hardware.device)
        self.batch = BatchSize(CUDA_FIRST if self.device == "cuda" else CPU)
        model, self._processor, self._missing = self._opened(checkpoint, kind)
        self._model: Any = model.eval().to(self.device)
        tokenizer = getattr(self._processor, "tokenizer", None)
        if tokenizer is None:
            raise VlmkitError(f"{checkpoint.name} has no tokenizer", "get the whole model again")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self._tokenizer: Any = tokenizer
        self._arguments = {"pad_token_id": tokenizer.pad_token_id}  # of `generate`, each time
        added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._marks = {*tokenizer.all_special_tokens, *added}
        self._ends = as_set(model.generation_config.eos_token_id)

    def _opened(self, checkpoint: Checkpoint, kind: str) -> tuple[Any, Any, list[str]]:
        """Model, by the class `kind` of transformers; processor; the names of weights that the library made up."""
        import transformers

        precision = self._torch.bfloat16 if self.device == "cuda" else self._torch.float32
        try:
            model, found = getattr(transformers, kind).from_pretrained(
                checkpoint.folder,
                dtype=precision,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            processor = transformers.AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
        except Exception as error:  # on damaged files the libraries raise what they like
            reason = " ".join(str(error).split())[:200]
            raise VlmkitError(f"{checkpoint.name} cannot be opened ({reason})", "get the whole model again") from None
        return model, processor, sorted(found["missing_keys"])

    def preprocess(self, image: "Image") -> Any:
        return image

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | Unanswerable]:
        answers: dict[int, Answer | Unanswerable] = {}
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            if (reason := self._refusal(request)) is not None:
                answers[number] = Unanswerable(reason)
            else:
                groups[self._group(request)].append(number)
        for some in groups.values():
            answers |= zip(some, self._fitting([requests[i] for i in some], sampling), strict=True)
        return [answers[i] for i in range(len(requests))]

    def _fitting(self, requests: list[Request], sampling: Sampling) -> Sequence[Answer | Unanswerable]:
        """The answers to one group. What does not fit into memory is halved, and done again."""
        with contextlib.suppress(self._torch.OutOfMemoryError):
            return self._replies(requests, sampling)
        if self.device == "cuda":
            self._torch.cuda.empty_cache()
        if len(requests) == 1:
            return [self._too_large()]
        self.batch.too_large(len(requests))
        half = len(requests) // 2
        return [*self._fitting(requests[:half], sampling), *self._fitting(requests[half:], sampling)]

    def _too_large(self) -> Unanswerable:
        return Unanswerable(
            f"it does not fit into the memory of {self.device}", "take smaller pictures or a smaller model"
        )

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | Unanswerable:
        (answer,) = self.answer([request], sampling)
        if isinstance(answer, Answer):
            say(answer.text)
        return answer

    def _refusal(self, request: Request) -> str | None:
        """Why this request cannot be answered."""
        return None

    def _group(self, request: Request) -> Hashable:
        """Equal for requests that go through the model together."""
        raise NotImplementedError

    def _replies(self, requests: list[Request], sampling: Sampling) -> list[Answer]:
        """The answers to one group."""
        raise NotImplementedError

    def _generated(
        self, inputs: Mapping[str, Any], requests: list[Request], sampling: Sampling, streamer: Any = None
    ) -> list[list[int]]:
        """A row of tokens a request, as `generate` of the library returns them."""
        self._torch.manual_seed(sampling.seed + requests[0].number)
        with self._torch.inference_mode():
            made = self._model.generate(**inputs, **self._arguments, streamer=streamer, **settings(sampling))
        return made.tolist()

    def _plain(self, text: str) -> str:
        """`text` without what the tokenizer would take for marks of the conversation or of pictures."""
        for mark in self._marks:
            text = text.replace(mark, " ")
        return text.strip()

    def _cut(self, tokens: list[int]) -> tuple[list[int], str, int]:
        """(tokens before the end mark, finish, number of those made)."""
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        return tokens[:end], "length" if end is None else "stop", len(tokens) if end is None else end + 1

    def _answer(self, tokens: list[int], request: Request) -> Answer:
        words, finish, made = self._cut(tokens)
        return Answer(self._text(words, request.start).strip(), finish, made)

    def _text(self, tokens: list[int], start: str) -> str:
        """`start` as it was given, then what the model made of it: a space in between, or not, is the tokenizer's."""
        before = self._tokenizer(start, add_special_tokens=False).input_ids if start else []
        known, whole = (self._tokenizer.decode(some, skip_special_tokens=True) for some in (before, before + tokens))
        return start + whole.removeprefix(known)


def settings(sampling: Sampling) -> dict[str, Any]:
    """The arguments of `generate` that decide how words are chosen; none is left to the model's own files."""
    how: dict[str, Any] = {"max_new_tokens": sampling.max_tokens, "num_beams": sampling.beams}
    if sampling.temperature > 0:
        return how | {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    how |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.beams == 1:
        return how
    # Without the last one, what suppressed tokens would have had counts against a beam.
    return how | {"length_penalty": sampling.length_penalty, "renormalize_logits": True}


def as_set(found: int | list[int] | None) -> set[int]:
    """One token or several, as configurations hold them."""
    return set(found) if isinstance(found, list) else set() if found is None else {found}
