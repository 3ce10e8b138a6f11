"""PaliGemma, whose prompts have a prefix: `caption en`, `answer en QUESTION`, `detect THINGS`, `ocr`."""

import re
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

from vlmkit.models.boxes import FORMATS, find_boxes
from vlmkit.models.chat.single_image import SingleImageModel
from vlmkit.models.resolve import Checkpoint
from vlmkit.models.types import Answer, CaptionPreset, Hardware, Request

# The prefixes of its training (big_vision, configs/proj/paligemma), with the code of a language.
PREFIX = re.compile(r"(cap|caption|describe) [a-z]{2}|(answer|question) [a-z]{2} .+|(detect|segment) .+|ocr", re.DOTALL)
IMAGE_TOKEN = "<image>"
BOXES = FORMATS["paligemma"]


class PaliGemma(SingleImageModel):
    """PaliGemma (Beyer et al. 2024) and PaliGemma 2. A question without a prefix gets `answer en`."""

    family = "PaliGemma"
    tasks = ("answer", "ocr", "boxes")
    captions: Mapping[str, CaptionPreset] = {
        "short": CaptionPreset("cap en", 32),
        "normal": CaptionPreset("caption en", 64),
        "long": CaptionPreset("describe en", 256),
    }

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        super().__init__(checkpoint, hardware, "PaliGemmaForConditionalGeneration")
        self._picture_tokens = self._processor.image_seq_length + 1  # less IMAGE_TOKEN, more a start and a line feed

    def _prefix(self, request: Request) -> str:
        text = self._plain(request.prompt)
        if request.task == "ocr":
            return "ocr"
        if request.task == "boxes" and not text.startswith("detect "):
            return BOXES.prompt_for(text)
        return text if PREFIX.fullmatch(text) else f"answer en {text}"

    def _prompt(self, request: Request) -> str:
        return IMAGE_TOKEN + self._prefix(request)

    def _refusal(self, request: Request) -> str | None:
        if request.start:
            return f"{self.family} cannot continue a given beginning of an answer"
        if request.task != "ocr" and not self._plain(request.prompt):
            return "the question is empty"
        return super()._refusal(request)

    def _batch_key(self, request: Request) -> Hashable:
        return self._length(request)  # none needs padding, between which and the picture it would look

    def _repeated(self, inputs: Mapping[str, Any]) -> int:
        return inputs["input_ids"].shape[1]

    def _answer(self, tokens: list[int], request: Request, thought: str = "") -> Answer:
        if not self._prefix(request).startswith("detect "):
            return super()._answer(tokens, request)
        return self._answer_boxes(tokens, partial(find_boxes, form=BOXES, original=request.pictures[0].size))
