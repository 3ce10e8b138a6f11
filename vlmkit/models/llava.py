"""Image-text-to-text models of transformers, such as LLaVA: their own processor, chat template and `generate`."""

import contextlib
import importlib
import tomllib
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.boxes import FORMS, Form, boxes
from vlmkit.errors import VlmkitError
from vlmkit.models import Hardware
from vlmkit.models.attention import Looks, looks
from vlmkit.models.chat import CAPTIONS, Answer, Request, Sampling, Unanswerable
from vlmkit.models.find import Checkpoint, read_json
from vlmkit.models.mini import SIZE, preprocess
from vlmkit.models.mini.talk import WORDLESS
from vlmkit.models.seen_once import seen_once, takes_features
from vlmkit.models.transformers_talker import TransformersTalker

if TYPE_CHECKING:
    from PIL.Image import Image

SHARING = ("llava", "llava_next", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")  # where it was tried
OURS = "vlmkit_"  # begins the type of a tower or connector that is not transformers' own


class ImageTextToText(TransformersTalker):
    """A model of `AutoModelForImageTextToText` with a chat template."""

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        config = read_json(checkpoint.folder / "config.json")
        tower = str((config.get("vision_config") or {}).get("model_type"))
        if str(config.get("model_type")).startswith(OURS) or tower.startswith(OURS):
            importlib.import_module("vlmkit.models.vlm")  # registers them
        super().__init__(checkpoint, hardware)
        self._stage = _stage(checkpoint.folder)
        self._shares = config.get("model_type") in SHARING and takes_features(self._model)
        self.size = SIZE if tower == "vlmkit_mini_grid" else None  # trained on pictures as mini sees them
        self.captions = WORDLESS if self._stage else CAPTIONS
        self._boxes = FORMS.get(str(config.get("model_type")))
        self.tasks = (
            {"answer", "attention"} | (set() if self._stage else {"ocr"}) | ({"boxes"} if self._boxes else set())
        )
        template = self._processor.chat_template or self._tokenizer.chat_template
        if not template and self._stage != "align":
            raise VlmkitError(f"{checkpoint.name} has no chat template", "name a model that was made for conversations")
        self._by_parts = "image" in str(template)  # that of a language model alone knows strings only
        self._mark = getattr(self._processor, "image_token", "<image>")
        self._marks.add(self._mark)
        self._tokenizer.padding_side = "left"

    def preprocess(self, image: "Image") -> "Image":
        from PIL import Image

        return Image.fromarray(preprocess(image)) if self.size else image

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | Unanswerable:
        from transformers import TextStreamer

        class Saying(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    say(text)

        if request.start:
            say(request.start)
        streamer = Saying(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        with contextlib.suppress(self._torch.OutOfMemoryError):
            return self._replies([request], replace(sampling, beams=1), streamer)[0]
        return self._too_large()

    def _group(self, request: Request) -> Hashable:
        return len(request.all_pictures())  # processors take one number at a time

    def _replies(self, requests: list[Request], sampling: Sampling, streamer: Any = None) -> list[Answer]:
        form = self._boxes if requests[0].task == "boxes" else None
        if form:
            requests = [replace(request, prompt=form.asked(request.prompt)) for request in requests]
        inputs = self._inputs(requests)
        rows = self._generated(self._seen_once(inputs, requests), requests, sampling, streamer)
        made = [row[inputs["input_ids"].shape[1] :] for row in rows]
        if form is None:
            return [self._answer(row, request) for row, request in zip(made, requests, strict=True)]
        seen = self._seen(inputs)
        return [self._found(*one, form) for one in zip(made, requests, seen, strict=True)]

    def _seen_once(self, inputs: Any, requests: list[Request]) -> Any:
        if not self._shares:
            return inputs
        pictures = [picture for request in requests for picture in request.all_pictures()]
        with self._torch.inference_mode():
            return seen_once(self._model, inputs, pictures, lambda one: self._inputs([Request("", [one])]))

    def _found(self, tokens: list[int], request: Request, seen: tuple[int, int] | None, form: Form) -> Answer:
        """The reply with its boxes, of which some families write the marks as special tokens."""
        words, finish, made = self._cut(tokens)
        said = self._tokenizer.decode(words, skip_special_tokens=False)
        found = boxes(said, form, request.pictures[0].size, seen)
        return Answer(", ".join(box["label"] for box in found), finish, made, found)

    def _inputs(self, requests: list[Request]) -> Any:
        texts = [self._told(request) + request.start for request in requests]
        begins = self._tokenizer.bos_token
        whole = self._stage is not None or (begins is not None and texts[0].startswith(begins))
        return self._processor(
            text=texts,
            images=[request.all_pictures() for request in requests] if requests[0].all_pictures() else None,
            padding=True,
            add_special_tokens=not whole,
            return_tensors="pt",
        ).to(self.device, self._model.dtype)

    def attention(self, request: Request, answer: str) -> Looks:
        """Where each word of `answer` looked. Raises Unanswerable where the picture is no grid of tokens."""
        if len(request.all_pictures()) != 1:
            raise Unanswerable("where words look is shown for one picture")
        inputs = self._inputs([request])
        ids = self._tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self.device)
        return looks(self._model, self._processor, request.all_pictures()[0], inputs, ids)

    def _seen(self, inputs: Any) -> list[tuple[int, int] | None]:
        """The width and height to which the processor scaled each picture, where it says so (Qwen-VL)."""
        grids = inputs.get("image_grid_thw")
        if grids is None:
            return [None] * len(inputs["input_ids"])
        patch = self._processor.image_processor.patch_size
        return [(int(width) * patch, int(height) * patch) for _, height, width in grids.tolist()]

    def _told(self, request: Request) -> str:
        """The conversation in the model's own form; after `train align` alone, as it was trained, without one."""
        if self._stage == "align":
            marks = [self._mark] * len(request.all_pictures())
            said = "\n".join(filter(None, [self._plain(request.system), *marks, self._plain(request.prompt)]))
            return (self._tokenizer.bos_token or "") + said
        turns = [{"role": "system", "content": self._content(request.system, 0)}] if request.system else []
        for turn in request.earlier:
            turns.append({"role": "user", "content": self._content(turn.prompt, len(turn.pictures))})
            turns.append({"role": "assistant", "content": self._content(turn.answer, 0)})
        turns.append({"role": "user", "content": self._content(request.prompt, len(request.pictures))})
        return self._processor.apply_chat_template(turns, add_generation_prompt=True)

    def _content(self, text: str, pictures: int) -> Any:
        text = self._plain(text)
        if self._by_parts:
            return [{"type": "image"}] * pictures + [{"type": "text", "text": text}] * bool(text)
        return "\n".join([self._mark] * pictures + [text] * bool(text))


def _stage(folder: Path) -> str | None:
    """The stage of `vlmkit train` that made the model, if it was that."""
    try:
        return str(tomllib.loads((folder / "train.toml").read_text()).get("stage"))
    except (OSError, ValueError):
        return None
