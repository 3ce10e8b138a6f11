"""Chat models of transformers that take one picture of fixed size and one text a request."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.base import TransformersChatModel
from vlmkit.models.resolve import Checkpoint, read_json
from vlmkit.models.types import Answer, Hardware, Request, Sampling

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Picture(NamedTuple):
    """`pixels` (3, H, W) uint8 in the size that the model takes; `size` (width, height) of the original."""

    pixels: "torch.Tensor"
    size: tuple[int, int]


class SingleImageModel(TransformersChatModel):
    """A family of models that takes one picture a request and no system text.

    `family` is its name in a message. `_context`: positions of encoder and decoder, each or together, None for any
    number. `_picture_tokens`: those of the picture in the prompt.
    """

    family: str
    _context: int | None
    _picture_tokens = 0
    most_pictures = 1

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware, kind: str) -> None:
        super().__init__(checkpoint, hardware, kind)
        if self._missing:
            what = f"{self.name} lacks weights of its {kind} ({self._missing[0]} and others)"
            raise VlmkitError(what, "download the model again")
        self._context = getattr(self._model.config.text_config, "max_position_embeddings", None)
        self._tokenizer.padding_side = "right"

    def preprocess(self, image: "Image") -> Picture:
        """Scaled here, in threads, so that what waits is small; the rest is done in `_inputs`."""
        options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        return Picture(self._processor.image_processor(images=[image], **options)["pixel_values"][0], image.size)

    @abstractmethod
    def _prompt(self, request: Request) -> str:
        """The model's prompt for a request."""

    def _refusal(self, request: Request) -> str | None:
        if request.system:
            return f"{self.family} does not support a system text: leave --system out"
        if len(request.pictures) != 1:
            shown = f"{len(request.pictures)} pictures" if request.pictures else "no picture"
            return f"{self.family} takes one picture at a time, this request has {shown}"
        if self._context is not None and (length := self._length(request)) >= self._context:
            return f"{length} tokens with its picture, more than the {self._context} of the model"
        return None

    def _prompt_tokens(self, request: Request) -> int:
        """Tokens of the request, with those of its picture that stand among them."""
        return self._picture_tokens + len(self._tokenizer(self._prompt(request)).input_ids)

    def _length(self, request: Request) -> int:
        """The positions that it takes."""
        return self._prompt_tokens(request)

    def _batch_key(self, request: Request) -> Hashable:
        return bool(self._prompt(request))

    def _generate(self, requests: list[Request], sampling: Sampling) -> list[Answer]:
        inputs = self._inputs(requests)
        before = self._repeated(inputs)
        if self._context is not None:
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, self._context - before))
        rows = self._tokens(inputs, requests, sampling)
        return [
            row.confident(
                replace(self._answer(row.tokens[before:], request), prompt_tokens=self._prompt_tokens(request))
            )
            for row, request in zip(rows, requests, strict=True)
        ]

    def _inputs(self, requests: list[Request]) -> Mapping[str, Any]:
        texts = [self._prompt(request) for request in requests]
        pixels = [request.pictures[0].pixels for request in requests]
        return self._processed(images=pixels, text=texts if texts[0] else None, padding=True)

    def _repeated(self, inputs: Mapping[str, Any]) -> int:
        """The number of tokens that `generate` returns before the reply; 1 is the start token of a separate decoder."""
        return 1


def architecture(checkpoint: Checkpoint) -> str:
    """The class of transformers that saved a checkpoint. Raises VlmkitError where it does not say."""
    found = read_json(checkpoint.folder / "config.json").get("architectures")
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise VlmkitError(
            f"the config.json of {checkpoint.name} does not name an architecture", "download the model again"
        )
    return found[0]
