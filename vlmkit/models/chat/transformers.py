"""Chat models of transformers with a chat template, such as LLaVA."""

import importlib
import inspect
import sys
import tomllib
from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.io.pictures import at_marks
from vlmkit.models.boxes import FORMATS, find_boxes
from vlmkit.models.chat.attention import AttentionMaps, attention_maps
from vlmkit.models.chat.base import TransformersChatModel
from vlmkit.models.chat.fewer_pictures import TooLong
from vlmkit.models.chat.reasoning import AnswerStream, thinks_already
from vlmkit.models.chat.template import TemplateRefusal, render, without_thought
from vlmkit.models.embedders.mini import SIZE, preprocess
from vlmkit.models.resolve import Checkpoint, read_json
from vlmkit.models.types import (
    CAPTIONS,
    PROMPTLESS_CAPTIONS,
    Answer,
    Hardware,
    Request,
    RequestError,
    Sampling,
)

if TYPE_CHECKING:
    from PIL.Image import Image

SHARING = ("llava", "llava_next", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")  # where it was tested
OWN_TYPES = "vlmkit_"  # begins the type of a tower or connector that is not transformers' own


class ImageTextToText(TransformersChatModel):
    """A model of `AutoModelForImageTextToText` with a chat template, or one of `vlmkit train align`, without."""

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        config = read_json(checkpoint.folder / "config.json")
        model_type = str(config.get("model_type"))
        tower = str((config.get("vision_config") or {}).get("model_type"))
        if model_type.startswith(OWN_TYPES) or tower.startswith(OWN_TYPES):
            importlib.import_module("vlmkit.models.llava.model")  # registers them
        super().__init__(checkpoint, hardware)
        self._stage = _stage(checkpoint.folder)
        # Older versions of transformers take no features in place of pixels.
        takes_features = "mm_encoder_outputs" in inspect.signature(self._model.forward).parameters
        self._context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        self._shares = model_type in SHARING and takes_features
        self.size = SIZE if tower == "vlmkit_mini_grid" else None  # trained on pictures as mini sees them
        self.captions = PROMPTLESS_CAPTIONS if self._stage else CAPTIONS
        self._boxes = FORMATS.get(model_type)
        supported = {"answer": True, "raw": True, "attention": True}
        supported |= {"ocr": not self._stage, "boxes": bool(self._boxes)}
        self.tasks = [task for task, does in supported.items() if does]
        template = self._processor.chat_template or self._tokenizer.chat_template
        if not template and self._stage != "align":
            raise VlmkitError(f"{self.name} has no chat template", "name a model that was made for conversations")
        self.interleaved = self._stage != "align"
        self._by_parts = self.interleaved and "image" in str(template)  # that of a language model knows strings only
        self._image_token = getattr(self._processor, "image_token", "<image>")
        self._special.add(self._image_token)
        self._tokenizer.padding_side = "left"

    def preprocess(self, image: "Image") -> "Image":
        from PIL import Image

        return Image.fromarray(preprocess(image)) if self.size else image

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | RequestError:
        from transformers import TextStreamer

        def said(text: str) -> None:
            for token in () if self._skips_special else self._special:
                text = text.replace(token, "")
            say(text)

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    shown.put(text)

        streamer = Streamer(self._tokenizer, skip_prompt=True, skip_special_tokens=self._skips_special)
        shown = AnswerStream(said, unopened=False)
        try:
            shown.text = self._thought(request)
            shown.put(request.start)
            return self._generate([request], replace(sampling, beams=1), streamer)[0]
        except RequestError as error:
            return error
        except self._torch.OutOfMemoryError:
            return self._out_of_memory()
        finally:
            shown.end()

    def _refusal(self, request: Request) -> str | None:
        return "a text is continued without pictures" if request.task == "raw" and request.all_pictures() else None

    def _batch_key(self, request: Request) -> Hashable:
        if request.task == "raw":
            return request.number  # alone: padding would change the last bits
        return len(request.all_pictures())  # processors take one number at a time

    def _generate(self, requests: list[Request], sampling: Sampling, streamer: Any = None) -> list[Answer]:
        form = self._boxes if requests[0].task == "boxes" else None
        if form:
            requests = [replace(request, prompt=form.prompt_for(request.prompt)) for request in requests]
        inputs = self._inputs(requests)
        rows = self._tokens(self._encode_once(inputs, requests), requests, sampling, streamer)
        if requests[0].task == "raw":
            return [self._continuation(row.tokens, inputs["input_ids"].shape[1]) for row in rows]
        generated = [row.tokens[inputs["input_ids"].shape[1] :] for row in rows]
        if form is None:
            answers = [
                self._answer(tokens, request, self._thought(request))
                for tokens, request in zip(generated, requests, strict=True)
            ]
        else:
            answers = [
                self._answer_boxes(tokens, partial(find_boxes, form=form, original=one.pictures[0].size, scaled=size))
                for tokens, one, size in zip(generated, requests, self._scaled_sizes(inputs), strict=True)
            ]
        counts = inputs["attention_mask"].sum(1).tolist()  # without padding
        return [
            row.confident(replace(answer, prompt_tokens=count))
            for row, answer, count in zip(rows, answers, counts, strict=True)
        ]

    def _continuation(self, row: list[int], start: int) -> Answer:
        """What follows the first `start` tokens of `row`, with its spaces."""
        tokens, finish, count = self._cut(row[start:])
        parts = row[:start], row[:start] + tokens
        known, whole = (self._tokenizer.decode(ids, skip_special_tokens=True) for ids in parts)
        return Answer(whole.removeprefix(known), finish, count, prompt_tokens=start)

    def _inputs(self, requests: list[Request]) -> Any:
        if requests[0].task == "raw":
            return self._processed(text=[request.prompt for request in requests])
        texts = [self._begun(request) for request in requests]
        bos = self._tokenizer.bos_token
        complete = self._stage is not None or (bos is not None and texts[0].startswith(bos))
        inputs = self._processed(
            text=texts,
            images=[request.all_pictures() for request in requests] if requests[0].all_pictures() else None,
            padding=True,
            add_special_tokens=not complete,
        )
        if (length := inputs["input_ids"].shape[1]) >= self._context and any(one.labels for one in requests):
            raise TooLong(length, self._context)
        return inputs

    def _begun(self, request: Request) -> str:
        """The prompt and how the reply begins, which is not within a thought."""
        prompt = self._prompt(request)
        return without_thought(prompt) + request.start if request.start else prompt

    def _thought(self, request: Request) -> str:
        """The mark of a thought that the prompt has begun."""
        return "" if request.start else thinks_already(self._prompt(request))

    def _encode_once(self, inputs: Any, requests: list[Request]) -> Any:
        """`inputs` of `generate` with features in place of pixels, where at least half of the pictures are repetitions.

        The features go where `generate` puts those that it computes, its `mm_encoder_outputs`.
        """
        pictures = [picture for request in requests for picture in request.all_pictures()]
        keys = [(picture.size, picture.tobytes()) for picture in pictures] if self._shares else []
        distinct = dict(zip(keys, pictures, strict=False))
        if not keys or 2 * len(distinct) > len(keys):
            return inputs
        encode = self._model.base_model.get_image_features
        taken = set(inspect.signature(encode).parameters)
        encoded = {}
        with self._torch.inference_mode():
            for key, picture in distinct.items():
                alone = self._inputs([Request("", [picture])]).items()
                encoded[key] = encode(**{name: value for name, value in alone if name in taken}, return_dict=True)
            features = copy(encoded[keys[0]])
            for name in ("pooler_output", "deepstack_features"):  # what language models take of it
                # Not as keys: LLaVA adds the first to what the tower gave, which need not have a field of that name.
                if getattr(features, name, None) is not None:
                    setattr(features, name, _joined([getattr(encoded[key], name) for key in keys]))
        rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
        return rest | {"mm_encoder_outputs": {"image": features}}

    def attention(self, request: Request, answer: str) -> AttentionMaps:
        """Where each word of `answer` attends to. Raises RequestError where the image tokens are not a grid."""
        if len(request.all_pictures()) != 1:
            raise RequestError("attention maps require a single picture")
        inputs = self._inputs([request])
        ids = self._tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self.device)
        return attention_maps(self._model, self._processor, request.all_pictures()[0], inputs, ids)

    def _scaled_sizes(self, inputs: Any) -> list[tuple[int, int] | None]:
        """The width and height to which the processor scaled each picture, where it says so (Qwen-VL)."""
        grids = inputs.get("image_grid_thw")
        if grids is None:
            return [None] * len(inputs["input_ids"])
        patch = self._processor.image_processor.patch_size
        return [(int(width) * patch, int(height) * patch) for _, height, width in grids.tolist()]

    def _prompt(self, request: Request) -> str:
        """The conversation in the model's own form; after `train align` alone, as it was trained, without one."""
        if self._stage == "align":
            lines = [self._plain(request.system), self._content(request.prompt, len(request.all_pictures()))]
            return (self._tokenizer.bos_token or "") + "\n".join(filter(None, lines))
        turns = [{"role": "system", "content": self._content(request.system, 0)}] if request.system else []
        for turn in request.earlier:
            turns.append({"role": "user", "content": self._content(turn.prompt, len(turn.pictures))})
            turns.append({"role": "assistant", "content": self._content(turn.answer, 0)})
        turns.append({"role": "user", "content": self._content(request.labelled_prompt, len(request.pictures))})
        try:
            prompt = render(partial(self._processor.apply_chat_template, add_generation_prompt=True), turns)
        except TemplateRefusal as error:
            what = f"the model's chat template refuses the conversation ({error})"
            raise RequestError(what, "leave out what it names, or name another model") from None
        return without_thought(prompt) if self._stage else prompt

    def _content(self, text: str, pictures: int) -> Any:
        """A turn in the form of the template: parts, or a text with image tokens, at the marks or before the text."""
        parts = list(at_marks(text, [None] * pictures))
        if self._by_parts:
            said = [part if part is None else self._plain(part) for part in parts]
            return [{"type": "image"} if one is None else {"type": "text", "text": one} for one in said if one != ""]
        if parts[:-1] == [None] * pictures:
            return "\n".join(filter(None, [*[self._image_token] * pictures, self._plain(parts[-1])]))
        return "".join(self._image_token if part is None else self._without_special(part) for part in parts).strip()


def _joined(parts: list[Any]) -> Any:
    """One of the `parts`, those of all: a tensor (tiles, tokens, width), tensors (tokens, width), or those by layer."""
    import torch

    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    if isinstance(parts[0][0], torch.Tensor):
        return [tile for part in parts for tile in part]
    return [_joined(list(layer)) for layer in zip(*parts, strict=True)]


def _stage(folder: Path) -> str | None:
    """The stage of `vlmkit train` that made the model, None for other models."""
    try:
        return str(tomllib.loads((folder / "train.toml").read_text()).get("stage"))
    except (OSError, ValueError):
        return None
