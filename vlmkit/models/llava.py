"""Image-text-to-text models of transformers, such as LLaVA: their own processor, chat template and `generate`."""

import importlib
import tomllib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.models import Hardware
from vlmkit.models.batch import CPU, CUDA_FIRST, BatchSize
from vlmkit.models.chat import CAPTIONS, Answer, Request, Sampling, Unanswerable
from vlmkit.models.find import Checkpoint, read_json
from vlmkit.models.mini import SIZE, preprocess
from vlmkit.models.mini.talk import Talk
from vlmkit.models.torch_embedder import hush, torch_device

if TYPE_CHECKING:
    from PIL.Image import Image

OURS = "vlmkit_"  # begins the type of a tower or connector that is not transformers' own


class ImageTextToText:
    """A model of `AutoModelForImageTextToText` with a chat template. No code of its folder is run."""

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        hush()
        config = read_json(checkpoint.folder / "config.json")
        tower = str((config.get("vision_config") or {}).get("model_type"))
        if str(config.get("model_type")).startswith(OURS) or tower.startswith(OURS):
            importlib.import_module("vlmkit.models.vlm")  # registers them
        self._stage = _stage(checkpoint.folder)
        self._torch = torch
        self.device = torch_device(hardware.device)
        self.batch = BatchSize(CUDA_FIRST if self.device == "cuda" else CPU)
        self.size = SIZE if tower == "vlmkit_mini_grid" else None  # trained on pictures as mini sees them
        self.captions = Talk.captions if self._stage else CAPTIONS
        kind = torch.bfloat16 if self.device == "cuda" else torch.float32
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                checkpoint.folder, dtype=kind, use_safetensors=True, trust_remote_code=False
            )
            self._processor: Any = AutoProcessor.from_pretrained(checkpoint.folder, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise VlmkitError(f"{checkpoint.name} cannot be opened ({reason})", "get the whole model again") from None
        tokenizer: Any = getattr(self._processor, "tokenizer", None)
        template = tokenizer and (self._processor.chat_template or tokenizer.chat_template)
        if not template and self._stage != "align":
            raise VlmkitError(f"{checkpoint.name} has no chat template", "name a model that was made for conversations")
        self._by_parts = "image" in str(template)  # that of a language model alone knows strings only
        self._mark = getattr(self._processor, "image_token", "<image>")
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self._tokenizer = tokenizer
        added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._marks = {*tokenizer.all_special_tokens, *added, self._mark}
        self._model: Any = model.eval()
        self._model.to(self.device)
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    def preprocess(self, image: "Image") -> "Image":
        from PIL import Image

        return Image.fromarray(preprocess(image)) if self.size else image

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | Unanswerable]:
        answers: dict[int, Answer] = {}
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].pictures))
        for _, group in groupby(order, lambda i: len(requests[i].pictures)):  # processors take one number at a time
            some = list(group)
            answers |= zip(some, self._generated([requests[i] for i in some], sampling), strict=True)
        return [answers[i] for i in range(len(requests))]

    def _generated(self, requests: list[Request], sampling: Sampling) -> list[Answer]:
        torch = self._torch
        texts = [self._text(request) + request.start for request in requests]
        begins = self._tokenizer.bos_token
        whole = self._stage is not None or (begins is not None and texts[0].startswith(begins))
        inputs = self._processor(
            text=texts,
            images=[list(request.pictures) for request in requests] if requests[0].pictures else None,
            padding=True,
            add_special_tokens=not whole,
            return_tensors="pt",
        ).to(self.device, self._model.dtype)
        torch.manual_seed(sampling.seed + requests[0].number)
        with torch.inference_mode():
            made = self._model.generate(**inputs, pad_token_id=self._tokenizer.pad_token_id, **_settings(sampling))
        rows = made[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._answer(row, request.start) for row, request in zip(rows, requests, strict=True)]

    def _text(self, request: Request) -> str:
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

    def _plain(self, text: str) -> str:
        """`text` without what the tokenizer would take for marks of the conversation or of pictures."""
        for mark in self._marks:
            text = text.replace(mark, " ")
        return text.strip()

    def _answer(self, tokens: list[int], start: str) -> Answer:
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        made = len(tokens) if end is None else end + 1
        return Answer((start + text).strip(), "length" if end is None else "stop", made)


def _stage(folder: Path) -> str | None:
    """The stage of `vlmkit train` that made the model, if it was that."""
    try:
        return str(tomllib.loads((folder / "train.toml").read_text()).get("stage"))
    except (OSError, ValueError):
        return None


def _settings(sampling: Sampling) -> dict[str, Any]:
    """The arguments of `generate` that decide how words are chosen; none is left to the model's own files."""
    how: dict[str, Any] = {"max_new_tokens": sampling.max_tokens}
    if sampling.temperature > 0:
        return how | {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    how |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.beams == 1:
        return how
    # Without the last one, what suppressed tokens would have had counts against a beam.
    return how | {
        "num_beams": sampling.beams,
        "length_penalty": sampling.length_penalty,
        "renormalize_logits": True,
    }
