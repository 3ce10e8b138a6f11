"""Chat models of transformers: the base class of all, and the one for models with a chat template, such as LLaVA."""

import importlib
import inspect
import tomllib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError, first_line, reason_of
from vlmkit.io.pictures import at_marks
from vlmkit.models.batching import CPU, CUDA_FIRST, BatchSize
from vlmkit.models.boxes import FORMATS, Found, find_boxes
from vlmkit.models.chat.attention import AttentionMaps, attention_maps
from vlmkit.models.chat.reasoning import AnswerStream, is_mark, split_reasoning, thinks_already
from vlmkit.models.chat.template import TemplateRefusal, render, without_thought
from vlmkit.models.embedders.base import silence_libraries, torch_device
from vlmkit.models.embedders.mini import SIZE, preprocess
from vlmkit.models.resolve import Checkpoint, read_json
from vlmkit.models.types import (
    CAPTIONS,
    PROMPTLESS_CAPTIONS,
    Answer,
    ChatModel,
    Hardware,
    Request,
    RequestError,
    Sampling,
)

if TYPE_CHECKING:
    from PIL.Image import Image

SHARING = ("llava", "llava_next", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")  # where it was tested
OWN_TYPES = "vlmkit_"  # begins the type of a tower or connector that is not transformers' own


class TransformersChatModel(ChatModel):
    """A chat model of transformers (Wolf et al. 2020), bf16 on CUDA, else float32. No code of its folder is run.

    A subclass defines which requests it refuses, which others form a batch, their inputs, and the parsing of answers.
    """

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware, kind: str = "AutoModelForImageTextToText") -> None:
        import torch

        silence_libraries()
        self._torch = torch
        self.name = checkpoint.name
        self.device = torch_device(hardware.device)
        self.batch = BatchSize(CUDA_FIRST if self.device == "cuda" else CPU)
        model, self._processor, self._missing = self._from_pretrained(checkpoint.folder, kind)
        self._model: Any = model.eval().to(self.device)
        tokenizer = getattr(self._processor, "tokenizer", None)
        if tokenizer is None:
            raise VlmkitError(f"{self.name} has no tokenizer", "download the model again")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self._tokenizer: Any = tokenizer
        self._arguments = {"pad_token_id": tokenizer.pad_token_id}  # of `generate`, each time
        added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = {*tokenizer.all_special_tokens, *added}
        self._skips_special = not any(map(is_mark, self._special))
        self._ends = token_ids(model.generation_config.eos_token_id)

    def _from_pretrained(self, folder: Path, kind: str) -> tuple[Any, Any, list[str]]:
        """The model, by the class `kind` of transformers; its processor; the names of weights that the files lack."""
        import transformers

        dtype = self._torch.bfloat16 if self.device == "cuda" else self._torch.float32
        how = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
        try:
            model, report = getattr(transformers, kind).from_pretrained(folder, **how)
            processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # on damaged files the libraries raise anything
            reason = reason_of(error)
            raise VlmkitError(f"{self.name} cannot be opened ({reason})", "download the model again") from None
        return model, processor, sorted(report["missing_keys"])

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        answers: dict[int, Answer | RequestError] = {}
        batches: dict[Hashable, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            if (reason := self._refusal(request)) is not None:
                answers[number] = RequestError(reason)
            else:
                batches[self._batch_key(request)].append(number)
        for numbers in batches.values():
            answers |= zip(numbers, self._answer_batch([requests[i] for i in numbers], sampling), strict=True)
        return [answers[i] for i in range(len(requests))]

    def _answer_batch(self, requests: list[Request], sampling: Sampling) -> Sequence[Answer | RequestError]:
        """A batch that does not fit into memory, or one of whose requests the processor refuses, is halved."""
        try:
            return self._generate(requests, sampling)
        except RequestError as error:  # of the processor, about one of them
            if len(requests) == 1:
                return [error]
        except self._torch.OutOfMemoryError:
            if self.device == "cuda":
                self._torch.cuda.empty_cache()
            if len(requests) == 1:
                return [self._out_of_memory()]
            self.batch.too_large(len(requests))
        half = len(requests) // 2
        return [*self._answer_batch(requests[:half], sampling), *self._answer_batch(requests[half:], sampling)]

    def _out_of_memory(self) -> RequestError:
        what = f"it does not fit into the memory of {self.device}"
        return RequestError(what, "take smaller pictures or a smaller model")

    def _refusal(self, request: Request) -> str | None:
        """Why this request cannot be answered."""
        return None

    @abstractmethod
    def _batch_key(self, request: Request) -> Hashable:
        """Equal for requests that go through the model together."""

    @abstractmethod
    def _generate(self, requests: list[Request], sampling: Sampling) -> list[Answer]:
        """The answers to one batch."""

    def _processed(self, **inputs: Any) -> Any:
        """What the processor makes of `inputs`. Raises RequestError where it refuses them."""
        try:
            made = self._processor(**inputs, return_tensors="pt")
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
            what = f"the model's processor refuses it ({first_line(error)})"
            raise RequestError(what, "change the picture or the question") from None
        return made.to(self.device, self._model.dtype)

    def _tokens(
        self, inputs: Mapping[str, Any], requests: list[Request], sampling: Sampling, streamer: Any = None
    ) -> list[list[int]]:
        """A row of tokens for each request, as `generate` of the library returns them."""
        self._torch.manual_seed(sampling.seed + requests[0].number)
        with self._torch.inference_mode():
            made = self._model.generate(**inputs, **self._arguments, streamer=streamer, **decoding(sampling))
        return made.tolist()

    def _plain(self, text: str) -> str:
        """`text` without the names of special tokens, such as those of turns or of pictures."""
        return self._without_special(text).strip()

    def _without_special(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, " ")
        return text

    def _answer(self, tokens: list[int], request: Request, thought: str = "") -> Answer:
        """The generated `tokens` as text: a space after `start`, or none, is the tokenizer's choice.

        `thought` is the mark with which the prompt began what the model thinks aloud.
        """
        tokens, finish, count = self._cut(tokens)
        before = self._tokenizer(request.start, add_special_tokens=False).input_ids if request.start else []
        skips = self._skips_special
        known, text = (self._tokenizer.decode(ids, skip_special_tokens=skips) for ids in (before, before + tokens))
        reasoning, answer = split_reasoning(thought + request.start + text.removeprefix(known), unopened=False)
        if not skips:
            reasoning, answer = self._plain(reasoning), self._plain(answer)
        return Answer(answer, finish, count, reasoning=reasoning)

    def _answer_boxes(self, tokens: list[int], find: Callable[[str], Found], start: str = "") -> Answer:
        """The boxes that `find` finds in the text, in which special tokens may be a part of them."""
        tokens, finish, count = self._cut(tokens)
        boxes, note = find(start + self._tokenizer.decode(tokens, skip_special_tokens=False))
        return Answer(", ".join(box["label"] for box in boxes), finish, count, boxes, note)

    def _cut(self, tokens: list[int]) -> tuple[list[int], str, int]:
        """(tokens before the end token, finish, number of those generated)."""
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        return tokens[:end], "length" if end is None else "stop", len(tokens) if end is None else end + 1


def decoding(sampling: Sampling) -> dict[str, Any]:
    """The arguments of `generate` that decide how tokens are chosen; none is left to the model's own files."""
    how: dict[str, Any] = {"max_new_tokens": sampling.max_tokens, "num_beams": sampling.beams}
    if sampling.temperature > 0:
        return how | {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    how |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.beams > 1:
        # Without the second, the probability that suppressed tokens would have had counts against a beam.
        how |= {"length_penalty": sampling.length_penalty, "renormalize_logits": True}
    return how


def token_ids(found: int | list[int] | None) -> set[int]:
    """A list of tokens from a configuration's one or several."""
    return set(found) if isinstance(found, list) else set() if found is None else {found}


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
            return [self._continuation(row, inputs["input_ids"].shape[1]) for row in rows]
        generated = [row[inputs["input_ids"].shape[1] :] for row in rows]
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
        return [replace(answer, prompt_tokens=count) for answer, count in zip(answers, counts, strict=True)]

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
        return self._processed(
            text=texts,
            images=[request.all_pictures() for request in requests] if requests[0].all_pictures() else None,
            padding=True,
            add_special_tokens=not complete,
        )

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
        turns.append({"role": "user", "content": self._content(request.prompt, len(request.pictures))})
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
