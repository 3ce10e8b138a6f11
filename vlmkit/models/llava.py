"""Image-text-to-text models of transformers, such as LLaVA: their own processor, chat template and `generate`."""

import importlib
import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.models import Hardware
from vlmkit.models.chat import Answer, CaptionStyle, Request, Sampling
from vlmkit.models.find import Checkpoint, read_json
from vlmkit.models.mini import SIZE, preprocess
from vlmkit.models.mini.talk import Talk
from vlmkit.models.transformers_talker import TransformersTalker

if TYPE_CHECKING:
    from PIL.Image import Image

OURS = "vlmkit_"  # begins the type of a tower or connector that is not transformers' own
CAPTIONS = {
    "short": CaptionStyle("Describe this picture in a few words.", 24),
    "normal": CaptionStyle("Describe this picture in one sentence.", 64),
    "long": CaptionStyle("Describe this picture in detail.", 256),
}


class ImageTextToText(TransformersTalker):
    """A model of `AutoModelForImageTextToText` with a chat template."""

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        config = read_json(checkpoint.folder / "config.json")
        tower = str((config.get("vision_config") or {}).get("model_type"))
        if str(config.get("model_type")).startswith(OURS) or tower.startswith(OURS):
            importlib.import_module("vlmkit.models.vlm")  # registers them
        super().__init__(checkpoint, hardware)
        self._stage = _stage(checkpoint.folder)
        self.size = SIZE if tower == "vlmkit_mini_grid" else None  # trained on pictures as mini sees them
        self.captions = Talk.captions if self._stage else CAPTIONS
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

    def _group(self, request: Request) -> Hashable:
        return len(request.pictures)  # processors take one number at a time

    def _replies(self, requests: list[Request], sampling: Sampling) -> list[Answer]:
        texts = [self._told(request) + request.start for request in requests]
        begins = self._tokenizer.bos_token
        whole = self._stage is not None or (begins is not None and texts[0].startswith(begins))
        inputs = self._processor(
            text=texts,
            images=[list(request.pictures) for request in requests] if requests[0].pictures else None,
            padding=True,
            add_special_tokens=not whole,
            return_tensors="pt",
        ).to(self.device, self._model.dtype)
        rows = self._generated(inputs, requests, sampling)
        before = inputs["input_ids"].shape[1]
        return [self._answer(row[before:], request) for row, request in zip(rows, requests, strict=True)]

    def _told(self, request: Request) -> str:
        """The conversation in the model's own form; after `train align` alone, as it was trained, without one."""
        prompt, count = self._plain(request.prompt), len(request.pictures)
        if self._stage == "align":
            said = "\n".join(filter(None, [self._plain(request.system), *[self._mark] * count, prompt]))
            return (self._tokenizer.bos_token or "") + said
        turns = [{"role": "user", "content": self._content(prompt, count)}]
        if request.system:
            turns.insert(0, {"role": "system", "content": self._content(self._plain(request.system), 0)})
        return self._processor.apply_chat_template(turns, add_generation_prompt=True)

    def _content(self, text: str, pictures: int) -> Any:
        if self._by_parts:
            return [{"type": "image"}] * pictures + [{"type": "text", "text": text}] * bool(text)
        return "\n".join([self._mark] * pictures + [text] * bool(text))


def _stage(folder: Path) -> str | None:
    """The stage of `vlmkit train` that made the model, if it was that."""
    try:
        return str(tomllib.loads((folder / "train.toml").read_text()).get("stage"))
    except (OSError, ValueError):
        return None
