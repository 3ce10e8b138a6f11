"""Florence-2, whose prompts are tasks: captions, text in pictures, boxes."""

import re
from collections.abc import Hashable, Iterator, Mapping
from itertools import chain
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.models.boxes import EVERYTHING, Found
from vlmkit.models.chat.single_image import SingleImageModel
from vlmkit.models.resolve import Checkpoint, read_json
from vlmkit.models.types import Answer, Box, CaptionPreset, Hardware, Request

TASK = re.compile(r"\s*(<[A-Z_]+>)(.*)", re.DOTALL)
LOCATION = re.compile(r"<loc_\d+>")  # one of a thousand across the picture, or down it


class Florence(SingleImageModel):
    """Florence-2 (Xiao et al. 2024) in the form that transformers has a class for.

    A prompt is a task, such as `<OD>`, with a text behind it where the task takes one: `<CAPTION_TO_PHRASE_GROUNDING>
    a green car`. Tasks that ask where things are give boxes. Captions have three beams, as in its documentation.
    """

    family = "Florence-2"
    tasks = ("answer", "ocr", "boxes")
    captions: Mapping[str, CaptionPreset] = {
        "short": CaptionPreset("<CAPTION>", 64, beams=3),
        "normal": CaptionPreset("<DETAILED_CAPTION>", 128, beams=3),
        "long": CaptionPreset("<MORE_DETAILED_CAPTION>", 256, beams=3),
    }

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        if "auto_map" in read_json(checkpoint.folder / "config.json"):
            what = f"{checkpoint.name} is a Florence-2 that requires custom code, which vlmkit does not run"
            raise VlmkitError(what, "name one without, such as florence-community/Florence-2-base")
        super().__init__(checkpoint, hardware, "Florence2ForConditionalGeneration")
        forms = self._processor.tasks_answer_post_processing_type
        known = self._processor.post_processor_config or {}
        self._forms = {task: form for task, form in forms.items() if form in known}
        if not self._forms:
            raise VlmkitError(f"the processor of {self.name} lists no tasks", "download the model again")
        self._arguments["forced_eos_token_id"] = None  # what was cut is not to look as if it had ended
        self._prompts = self._processor.task_prompts_without_inputs | self._processor.task_prompts_with_input
        self._picture_tokens = self._processor.num_image_tokens
        self._special = {token for token in self._special if not LOCATION.fullmatch(token)} | set(forms)

    def _task(self, request: Request) -> tuple[str, str]:
        """(the task, or nothing; the text after it)."""
        found = TASK.fullmatch(request.prompt)
        text = self._plain(found[2] if found else request.prompt)
        if request.task == "ocr":
            return "<OCR>", ""
        if found:
            return found[1], text
        if request.task == "boxes":
            return ("<OD>", "") if text == EVERYTHING else ("<OPEN_VOCABULARY_DETECTION>", text)
        return "", text

    def _prompt(self, request: Request) -> str:
        task, text = self._task(request)
        return self._prompts[task].format(input=text)

    def _refusal(self, request: Request) -> str | None:
        task, text = self._task(request)
        takes_text = task in self._processor.task_prompts_with_input
        if task not in self._forms:
            return f"{self.family} does not answer free questions, use one of its tasks: {', '.join(self._forms)}"
        if text and not takes_text:
            return f"{task} takes no text after it"
        if takes_text and not text:
            return f"{task} requires a text after it"
        return super()._refusal(request)

    def _length(self, request: Request) -> int:
        start = len(self._tokenizer(request.start).input_ids)  # in the decoder, which has as many positions
        return max(super()._length(request), start)

    def _batch_key(self, request: Request) -> Hashable:
        return request.start

    def _inputs(self, requests: list[Request]) -> Mapping[str, Any]:
        inputs = super()._inputs(requests)
        if not requests[0].start:
            return inputs
        own = self._model.generation_config
        start = self._tokenizer(self._plain(requests[0].start), add_special_tokens=False).input_ids
        row = self._torch.tensor([[own.decoder_start_token_id, own.bos_token_id, *start]], device=self.device)
        return {**inputs, "decoder_input_ids": row.repeat(len(requests), 1)}

    def _repeated(self, inputs: Mapping[str, Any]) -> int:
        return inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 1

    def _answer(self, tokens: list[int], request: Request, thought: str = "") -> Answer:
        task, text = self._task(request)
        if self._forms[task] == "pure_text":
            return super()._answer(tokens, request)
        unnamed = LOCATION.sub("", text).strip() or "region"

        def find(written: str) -> Found:
            found = self._processor.post_process_generation(written, task=task, image_size=request.pictures[0].size)
            return Found(list(_boxes(found[task], unnamed)))

        return self._answer_boxes(tokens, find, request.start)


def _boxes(found: Mapping[str, Any], unnamed: str) -> Iterator[Box]:
    """The boxes and polygons that Florence-2's processor found, in pixels; `unnamed` is the default label."""
    labels = found.get("labels", [])
    for label, box in zip(found.get("bboxes_labels", labels), found.get("bboxes", []), strict=False):
        yield Box(label=label or unnamed, box=box)
    outlined = chain(
        zip(labels, ([quad] for quad in found.get("quad_boxes", [])), strict=False),
        zip(found.get("polygons_labels", labels), found.get("polygons", []), strict=False),
    )
    for label, polygons in outlined:
        for polygon in polygons:
            if len(polygon) >= 6:  # three corners
                xs, ys = polygon[::2], polygon[1::2]
                yield Box(label=label or unnamed, box=[min(xs), min(ys), max(xs), max(ys)], polygon=polygon)
