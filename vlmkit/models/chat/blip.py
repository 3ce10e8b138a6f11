"""BLIP: one set of weights writes captions, another answers questions."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.base import token_ids
from vlmkit.models.chat.single_image import SingleImageModel, architecture
from vlmkit.models.resolve import Checkpoint
from vlmkit.models.types import PROMPTLESS_CAPTIONS, CaptionPreset, Hardware, Request, UnsuitableModel

CAPTIONS, ANSWERS = "BlipForConditionalGeneration", "BlipForQuestionAnswering"


def blip(checkpoint: Checkpoint, hardware: Hardware) -> "Blip":
    """The BLIP that `checkpoint` holds. Raises VlmkitError for those that neither caption nor answer."""
    kind = architecture(checkpoint)
    if kind == CAPTIONS:
        return BlipCaptioner(checkpoint, hardware, kind)
    if kind == ANSWERS:
        return BlipAnswerer(checkpoint, hardware, kind)
    what = f"{checkpoint.name} is a {kind}, which does not generate text"
    raise VlmkitError(what, f"use a {CAPTIONS} for captions, a {ANSWERS} for questions")


class Blip(SingleImageModel):
    """BLIP (Li et al. 2022). Only prompts of equal length share a batch, as its `generate` reads padding as words."""

    family = "BLIP"

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware, kind: str) -> None:
        super().__init__(checkpoint, hardware, kind)
        self.size = self._model.config.vision_config.image_size
        self._ends = token_ids(self._model.config.text_config.sep_token_id)
        self._arguments = {}  # its `generate` sets that itself

    def _batch_key(self, request: Request) -> Hashable:
        return self._length(request)


class BlipCaptioner(Blip):
    """Writes captions, with a given beginning if there is one. Three beams, as in its own evaluation."""

    captions = PROMPTLESS_CAPTIONS | {"short": replace(PROMPTLESS_CAPTIONS["short"], max_tokens=30)}

    def _prompt(self, request: Request) -> str:
        if request.prompt:
            what = f"{self.name} writes captions and does not answer questions"
            raise UnsuitableModel(what, "use Salesforce/blip-vqa-base, or the command caption")
        return self._plain(request.start)

    def _repeated(self, inputs: Mapping[str, Any]) -> int:
        return inputs["input_ids"].shape[1] - 1 if "input_ids" in inputs else 1  # less the end token, which it drops


class BlipAnswerer(Blip):
    """Answers questions in a few words."""

    @property
    def captions(self) -> Mapping[str, CaptionPreset]:  # type: ignore[override]
        what = f"{self.name} answers questions and does not write captions"
        raise UnsuitableModel(what, "use Salesforce/blip-image-captioning-base, or the command ask")

    def _prompt(self, request: Request) -> str:
        return self._plain(request.prompt)

    def _refusal(self, request: Request) -> str | None:
        if request.start:
            return f"{self.family} cannot continue a given beginning of an answer"
        return super()._refusal(request) if self._prompt(request) else "the question is empty"
