"""BLIP, which captions with one set of weights and answers questions with another."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.single_image import SingleImageModel, architecture
from vlmkit.models.chat.transformers import token_ids
from vlmkit.models.resolve import Checkpoint
from vlmkit.models.types import PROMPTLESS_CAPTIONS, CaptionPreset, Hardware, Request

CAPTIONS, ANSWERS = "BlipForConditionalGeneration", "BlipForQuestionAnswering"


def blip(checkpoint: Checkpoint, hardware: Hardware) -> "Blip":
    """The BLIP that `checkpoint` holds. Raises VlmkitError for those that neither caption nor answer."""
    kind = architecture(checkpoint)
    if kind == CAPTIONS:
        return BlipCaptioner(checkpoint, hardware, kind)
    if kind == ANSWERS:
        return BlipAnswerer(checkpoint, hardware, kind)
    what = f"{checkpoint.name} is a {kind}, which writes no text"
    raise VlmkitError(what, f"name a {CAPTIONS} to caption, a {ANSWERS} to ask")


class Blip(SingleImageModel):
    """BLIP (Li et al. 2022). Requests of one length go together: its `generate` takes padding for words."""

    family = "BLIP"

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware, kind: str) -> None:
        super().__init__(checkpoint, hardware, kind)
        self.size = self._model.config.vision_config.image_size
        self._ends = token_ids(self._model.config.text_config.sep_token_id)
        self._arguments = {}  # its `generate` sets that itself

    def _batch_key(self, request: Request) -> Hashable:
        return self._length(request)


class BlipCaptioner(Blip):
    """Captions, freely or from a beginning on. Three beams, as in its own evaluation."""

    captions = PROMPTLESS_CAPTIONS | {"short": replace(PROMPTLESS_CAPTIONS["short"], max_tokens=30)}

    def _prompt(self, request: Request) -> str:
        if request.prompt:
            what = f"{self.name} captions, it answers no questions"
            raise VlmkitError(what, "ask Salesforce/blip-vqa-base, say; or use caption")
        return self._plain(request.start)

    def _repeated(self, inputs: Mapping[str, Any]) -> int:
        return inputs["input_ids"].shape[1] - 1 if "input_ids" in inputs else 1  # less the end token, which it drops


class BlipAnswerer(Blip):
    """Visual question answering, in a few words."""

    @property
    def captions(self) -> Mapping[str, CaptionPreset]:  # type: ignore[override]
        what = f"{self.name} answers questions, it does not caption"
        raise VlmkitError(what, "take Salesforce/blip-image-captioning-base, say; or use ask")

    def _prompt(self, request: Request) -> str:
        return self._plain(request.prompt)

    def _refusal(self, request: Request) -> str | None:
        if request.start:
            return f"{self.family} begins its answers itself"
        return super()._refusal(request) if self._prompt(request) else "the question is empty"
