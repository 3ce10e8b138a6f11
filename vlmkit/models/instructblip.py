"""InstructBLIP: a BLIP-2 whose Q-Former reads the instruction too, which is given as it is."""

from collections.abc import Mapping
from typing import ClassVar

from vlmkit.models import Hardware
from vlmkit.models.blip2 import Blip2
from vlmkit.models.chat import CaptionStyle, Request
from vlmkit.models.find import Checkpoint


class InstructBlip(Blip2):
    """InstructBLIP (Dai et al. 2023). Its captions are asked for as in its training, with five beams."""

    family = "InstructBLIP"
    captions: Mapping[str, CaptionStyle] = {
        "short": CaptionStyle("Write a short description for the image.", 30, beams=5),
        "normal": CaptionStyle("Write a description for the image.", 64, beams=5),
        "long": CaptionStyle("Describe the image in detail.", 256, beams=5),
    }
    _kind: ClassVar = "InstructBlipForConditionalGeneration"

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        super().__init__(checkpoint, hardware)
        self._processor.qformer_tokenizer.padding_side = "right"
        self._readable = self._model.config.qformer_config.max_position_embeddings

    def _asked(self, question: str) -> str:
        return question

    def _refusal(self, request: Request) -> str | None:
        if reason := super()._refusal(request):
            return reason
        if not self._told(request):
            return "a question without words"
        length = len(self._processor.qformer_tokenizer(self._told(request)).input_ids)
        return f"{length} tokens, more than the {self._readable} of the Q-Former" if length > self._readable else None
