"""BLIP-2: a language model that reads what a Q-Former saw; captions, free or guided, and answers.

InstructBLIP: a BLIP-2 whose Q-Former reads the instruction too, which is given as it is.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.single_image import OnePicture, architecture
from vlmkit.models.chat.transformers import as_set
from vlmkit.models.resolve import Checkpoint
from vlmkit.models.types import CaptionPreset, Hardware, Request


class Blip2(OnePicture):
    """BLIP-2 (Li et al. 2023), with a decoder (OPT) or an encoder and a decoder (Flan-T5) as its language model."""

    family = "BLIP-2"
    captions: Mapping[str, CaptionPreset] = {  # five beams, as in its paper
        "short": CaptionPreset("", 30, beams=5, length_penalty=0.0),
        "normal": CaptionPreset("", 40, beams=5),
        "long": CaptionPreset("", 80, beams=5, length_penalty=2.0),
    }
    _kind: ClassVar = "Blip2ForConditionalGeneration"

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        if (found := architecture(checkpoint)) != self._kind:
            raise VlmkitError(f"{checkpoint.name} is a {found}, which writes no text", f"name a {self._kind}")
        super().__init__(checkpoint, hardware, self._kind)
        config = self._model.config
        language = self._model.language_model
        self.size = config.vision_config.image_size
        self._apart = bool(config.text_config.is_encoder_decoder)
        if self._apart:
            self._context = None  # positions of T5 are relative
        else:
            self._tokenizer.padding_side = "left"
        self._places = config.num_query_tokens
        self._ends = as_set(language.generation_config.eos_token_id)
        mark = self._tokenizer.convert_tokens_to_ids(str(self._processor.image_token))
        if (self._processor.num_query_tokens, mark) != (config.num_query_tokens, config.image_token_index):
            what = f"{checkpoint.name} is of an old form, whose text has no places for the picture"
            raise VlmkitError(what, "get the model again")

    def _told(self, request: Request) -> str:
        return " ".join(filter(None, [self._asked(self._plain(request.prompt)), self._plain(request.start)]))

    def _asked(self, question: str) -> str:
        """The form in which it answers questions; one that is put so already stays."""
        return f"Question: {question} Answer:" if question and not question.endswith("nswer:") else question

    def _repeated(self, inputs: Mapping[str, Any]) -> int:
        if self._apart:
            return super()._repeated(inputs)
        return inputs["input_ids"].shape[1] if "input_ids" in inputs else self._places + 1  # a begin mark


class InstructBlip(Blip2):
    """InstructBLIP (Dai et al. 2023). Its captions are asked for as in its training, with five beams."""

    family = "InstructBLIP"
    captions: Mapping[str, CaptionPreset] = {
        "short": CaptionPreset("Write a short description for the image.", 30, beams=5),
        "normal": CaptionPreset("Write a description for the image.", 64, beams=5),
        "long": CaptionPreset("Describe the image in detail.", 256, beams=5),
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
