"""BLIP, which captions with one set of weights and answers questions with another."""

from collections.abc import Hashable, Mapping
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.single_image import OnePicture, architecture
from vlmkit.models.chat.transformers import as_set
from vlmkit.models.resolve import Checkpoint
from vlmkit.models.types import CaptionPreset, Hardware, Request

CAPTIONS, ANSWERS = "BlipForConditionalGeneration", "BlipForQuestionAnswering"


def blip(checkpoint: Checkpoint, hardware: Hardware) -> "Blip":
    """The BLIP that `checkpoint` holds. Raises VlmkitError for those that neither caption nor answer."""
    found = architecture(checkpoint)
    if found == CAPTIONS:
        return Captioner(checkpoint, hardware, found)
    if found == ANSWERS:
        return Answerer(checkpoint, hardware, found)
    what = f"{checkpoint.name} is a {found}, which writes no text"
    raise VlmkitError(what, f"name a {CAPTIONS} to caption, a {ANSWERS} to ask")


class Blip(OnePicture):
    """BLIP (Li et al. 2022). Requests of one length go together: its `generate` takes padding for words."""

    family = "BLIP"

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware, kind: str) -> None:
        super().__init__(checkpoint, hardware, kind)
        self.name = checkpoint.name
        self.size = self._model.config.vision_config.image_size
        self._ends = as_set(self._model.config.text_config.sep_token_id)
        self._arguments = {}  # its `generate` sets that itself

    def _group(self, request: Request) -> Hashable:
        return self._length(request)


class Captioner(Blip):
    """Captions, freely or from a beginning on. Three beams, as in its own evaluation."""

    captions = {  # noqa: RUF012 (read only)
        "short": CaptionPreset("", 30, beams=3, length_penalty=0.0),
        "normal": CaptionPreset("", 40, beams=3),
        "long": CaptionPreset("", 60, beams=3, length_penalty=2.0),
    }

    def _told(self, request: Request) -> str:
        if request.prompt:
            raise VlmkitError(
                f"{self.name} captions, it answers no questions", "ask Salesforce/blip-vqa-base, say; or use caption"
            )
        return self._plain(request.start)

    def _repeated(self, inputs: Mapping[str, Any]) -> int:
        return inputs["input_ids"].shape[1] - 1 if "input_ids" in inputs else 1  # no end mark, which it leaves out


class Answerer(Blip):
    """Visual question answering, in a few words."""

    @property
    def captions(self) -> Mapping[str, CaptionPreset]:  # type: ignore[override]
        raise VlmkitError(
            f"{self.name} answers questions, it does not caption",
            "take Salesforce/blip-image-captioning-base, say; or use ask",
        )

    def _told(self, request: Request) -> str:
        return self._plain(request.prompt)

    def _refusal(self, request: Request) -> str | None:
        if request.start:
            return f"{self.family} begins its answers itself"
        return super()._refusal(request) if self._told(request) else "a question without words"
