"""BLIP-2, a language model on the outputs of a Q-Former, and InstructBLIP, whose Q-Former reads the question too."""

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.base import token_ids
from vlmkit.models.chat.single_image import SingleImageModel, architecture
from vlmkit.models.resolve import Checkpoint
from vlmkit.models.types import CaptionPreset, Hardware, Request


class Blip2(SingleImageModel):
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
            raise VlmkitError(f"{checkpoint.name} is a {found}, which does not generate text", f"name a {self._kind}")
        super().__init__(checkpoint, hardware, self._kind)
        config = self._model.config
        self.size = config.vision_config.image_size
        self._has_encoder = bool(config.text_config.is_encoder_decoder)
        if self._has_encoder:
            self._context = None  # positions of T5 are relative
        else:
            self._tokenizer.padding_side = "left"
        self._picture_tokens = config.num_query_tokens
        self._ends = token_ids(self._model.language_model.generation_config.eos_token_id)
        image_token = self._tokenizer.convert_tokens_to_ids(str(self._processor.image_token))
        if (self._processor.num_query_tokens, image_token) != (config.num_query_tokens, config.image_token_index):
            what = f"{self.name} has an outdated configuration without image tokens"
            raise VlmkitError(what, "download the model again")

    def _prompt(self, request: Request) -> str:
        return " ".join(filter(None, [self.written(self._plain(request.prompt)), self._plain(request.start)]))

    @staticmethod
    def written(text: str) -> str:
        """The prompt for a question; a text that is a prompt already is unchanged."""
        return f"Question: {text} Answer:" if text and not text.endswith("nswer:") else text

    def _repeated(self, inputs: Mapping[str, Any]) -> int:
        if self._has_encoder:
            return super()._repeated(inputs)
        return inputs["input_ids"].shape[1] if "input_ids" in inputs else self._picture_tokens + 1  # a start token


class InstructBlip(Blip2):
    """InstructBLIP (Dai et al. 2023). Captions have the prompts of its training and five beams."""

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
        self._qformer_context = self._model.config.qformer_config.max_position_embeddings

    @staticmethod
    def written(text: str) -> str:
        return text

    def _refusal(self, request: Request) -> str | None:
        if reason := super()._refusal(request):
            return reason
        if not self._prompt(request):
            return "the question is empty"
        length, most = len(self._processor.qformer_tokenizer(self._prompt(request)).input_ids), self._qformer_context
        return f"{length} tokens, more than the {most} of the Q-Former" if length > most else None
