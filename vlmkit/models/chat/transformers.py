"""What all chat models of transformers have in common: opening them, asking them in batches, choosing words.

What the vision tower says of pictures that several requests of a batch share, computed once for each.

Image-text-to-text models of transformers, such as LLaVA: their own processor, chat template and `generate`.
"""

import contextlib
import importlib
import inspect
import tomllib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.models.batching import CPU, CUDA_FIRST, BatchSize
from vlmkit.models.boxes import FORMS, Form, boxes
from vlmkit.models.chat.attention import AttentionMaps, looks
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


class TransformersChatModel(ChatModel):
    """A chat model of transformers (Wolf et al. 2020), bf16 on CUDA, else float32. No code of its folder is run.

    A family of models says which requests it refuses, which of the others go through it together, and how they do.
    """

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware, kind: str = "AutoModelForImageTextToText") -> None:
        import torch

        silence_libraries()
        self._torch = torch
        self.device = torch_device(hardware.device)
        self.batch = BatchSize(CUDA_FIRST if self.device == "cuda" else CPU)
        model, self._processor, self._missing = self._opened(checkpoint, kind)
        self._model: Any = model.eval().to(self.device)
        tokenizer = getattr(self._processor, "tokenizer", None)
        if tokenizer is None:
            raise VlmkitError(f"{checkpoint.name} has no tokenizer", "get the whole model again")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self._tokenizer: Any = tokenizer
        self._arguments = {"pad_token_id": tokenizer.pad_token_id}  # of `generate`, each time
        added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._marks = {*tokenizer.all_special_tokens, *added}
        self._ends = as_set(model.generation_config.eos_token_id)

    def _opened(self, checkpoint: Checkpoint, kind: str) -> tuple[Any, Any, list[str]]:
        """Embedder, by the class `kind` of transformers; processor; the names of weights that the library made up."""
        import transformers

        precision = self._torch.bfloat16 if self.device == "cuda" else self._torch.float32
        try:
            model, found = getattr(transformers, kind).from_pretrained(
                checkpoint.folder,
                dtype=precision,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            processor = transformers.AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
        except Exception as error:  # on damaged files the libraries raise what they like
            reason = " ".join(str(error).split())[:200]
            raise VlmkitError(f"{checkpoint.name} cannot be opened ({reason})", "get the whole model again") from None
        return model, processor, sorted(found["missing_keys"])

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        answers: dict[int, Answer | RequestError] = {}
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            if (reason := self._refusal(request)) is not None:
                answers[number] = RequestError(reason)
            else:
                groups[self._group(request)].append(number)
        for some in groups.values():
            answers |= zip(some, self._fitting([requests[i] for i in some], sampling), strict=True)
        return [answers[i] for i in range(len(requests))]

    def _fitting(self, requests: list[Request], sampling: Sampling) -> Sequence[Answer | RequestError]:
        """The answers to one group. What does not fit into memory is halved, and done again."""
        with contextlib.suppress(self._torch.OutOfMemoryError):
            return self._replies(requests, sampling)
        if self.device == "cuda":
            self._torch.cuda.empty_cache()
        if len(requests) == 1:
            return [self._too_large()]
        self.batch.too_large(len(requests))
        half = len(requests) // 2
        return [*self._fitting(requests[:half], sampling), *self._fitting(requests[half:], sampling)]

    def _too_large(self) -> RequestError:
        return RequestError(
            f"it does not fit into the memory of {self.device}", "take smaller pictures or a smaller model"
        )

    def _refusal(self, request: Request) -> str | None:
        """Why this request cannot be answered."""
        return None

    def _group(self, request: Request) -> Hashable:
        """Equal for requests that go through the model together."""
        raise NotImplementedError

    def _replies(self, requests: list[Request], sampling: Sampling) -> list[Answer]:
        """The answers to one group."""
        raise NotImplementedError

    def _generated(
        self, inputs: Mapping[str, Any], requests: list[Request], sampling: Sampling, streamer: Any = None
    ) -> list[list[int]]:
        """A row of tokens a request, as `generate` of the library returns them."""
        self._torch.manual_seed(sampling.seed + requests[0].number)
        with self._torch.inference_mode():
            made = self._model.generate(**inputs, **self._arguments, streamer=streamer, **settings(sampling))
        return made.tolist()

    def _plain(self, text: str) -> str:
        """`text` without what the tokenizer would take for marks of the conversation or of pictures."""
        for mark in self._marks:
            text = text.replace(mark, " ")
        return text.strip()

    def _cut(self, tokens: list[int]) -> tuple[list[int], str, int]:
        """(tokens before the end mark, finish, number of those made)."""
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        return tokens[:end], "length" if end is None else "stop", len(tokens) if end is None else end + 1

    def _answer(self, tokens: list[int], request: Request) -> Answer:
        words, finish, made = self._cut(tokens)
        return Answer(self._text(words, request.start).strip(), finish, made)

    def _text(self, tokens: list[int], start: str) -> str:
        """`start` as it was given, then what the model made of it: a space in between, or not, is the tokenizer's."""
        before = self._tokenizer(start, add_special_tokens=False).input_ids if start else []
        known, whole = (self._tokenizer.decode(some, skip_special_tokens=True) for some in (before, before + tokens))
        return start + whole.removeprefix(known)


def settings(sampling: Sampling) -> dict[str, Any]:
    """The arguments of `generate` that decide how words are chosen; none is left to the model's own files."""
    how: dict[str, Any] = {"max_new_tokens": sampling.max_tokens, "num_beams": sampling.beams}
    if sampling.temperature > 0:
        return how | {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    how |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.beams == 1:
        return how
    # Without the last one, what suppressed tokens would have had counts against a beam.
    return how | {"length_penalty": sampling.length_penalty, "renormalize_logits": True}


def as_set(found: int | list[int] | None) -> set[int]:
    """One token or several, as configurations hold them."""
    return set(found) if isinstance(found, list) else set() if found is None else {found}


LISTS = "pooler_output", "deepstack_features"  # what language models take of it


def seen_once(
    model: Any, inputs: Any, pictures: Sequence["Image"], alone: Callable[["Image"], Mapping[str, Any]]
) -> dict[str, Any]:
    """`inputs` of `generate` with features in place of pixels, where at least every second picture is one seen before.

    `pictures` are those of `inputs` in order, and `alone` gives the inputs of one by itself. The features go where
    `generate` puts those that it computes (its `mm_encoder_outputs`).
    """
    keys = [(picture.size, picture.tobytes()) for picture in pictures]
    distinct = dict(zip(keys, pictures, strict=True))
    if not pictures or 2 * len(distinct) > len(keys):
        return dict(inputs)
    look = model.base_model.get_image_features
    taken = set(inspect.signature(look).parameters)
    seen = {}
    for key, picture in distinct.items():
        seen[key] = look(**{name: value for name, value in alone(picture).items() if name in taken}, return_dict=True)
    features = copy(seen[keys[0]])
    for name in LISTS:
        # Not as keys: LLaVA adds the first one to what the tower gave, which need not have a field of that name.
        if getattr(features, name, None) is not None:
            setattr(features, name, _joined([getattr(seen[key], name) for key in keys]))
    return {name: value for name, value in inputs.items() if name != "pixel_values"} | {
        "mm_encoder_outputs": {"image": features}
    }


def takes_features(model: Any) -> bool:
    """Whether `generate` takes features in place of pixels: older versions of transformers do not."""
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def _joined(parts: list[Any]) -> Any:
    """One of the `parts`, those of all: a tensor (tiles, tokens, width), tensors (tokens, width), or those by layer."""
    import torch

    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    if isinstance(parts[0][0], torch.Tensor):
        return [tile for part in parts for tile in part]
    return [_joined(list(layer)) for layer in zip(*parts, strict=True)]


SHARING = ("llava", "llava_next", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")  # where it was tried
OURS = "vlmkit_"  # begins the type of a tower or connector that is not transformers' own


class ImageTextToText(TransformersChatModel):
    """A model of `AutoModelForImageTextToText` with a chat template."""

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        config = read_json(checkpoint.folder / "config.json")
        tower = str((config.get("vision_config") or {}).get("model_type"))
        if str(config.get("model_type")).startswith(OURS) or tower.startswith(OURS):
            importlib.import_module("vlmkit.models.llava.model")  # registers them
        super().__init__(checkpoint, hardware)
        self._stage = _stage(checkpoint.folder)
        self._shares = config.get("model_type") in SHARING and takes_features(self._model)
        self.size = SIZE if tower == "vlmkit_mini_grid" else None  # trained on pictures as mini sees them
        self.captions = PROMPTLESS_CAPTIONS if self._stage else CAPTIONS
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

    def stream(self, request: Request, sampling: Sampling, say: Callable[[str], None]) -> Answer | RequestError:
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

    def attention(self, request: Request, answer: str) -> AttentionMaps:
        """Where each word of `answer` looked. Raises Unanswerable where the picture is no grid of tokens."""
        if len(request.all_pictures()) != 1:
            raise RequestError("where words look is shown for one picture")
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
