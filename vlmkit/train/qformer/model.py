"""A BLIP-2 or InstructBLIP in training: what is trained of it, its loss, and how it is opened and saved."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from vlmkit.errors import VlmkitError, first_line
from vlmkit.models.resolve import read_json
from vlmkit.train.checkpoints import LoadedStrictly
from vlmkit.train.config import VlmConfig
from vlmkit.train.vlm.lora import ADAPTABLE, DTYPES

CLASSES = {"blip-2": "Blip2ForConditionalGeneration", "instructblip": "InstructBlipForConditionalGeneration"}
TRAINED = ("query_tokens", "qformer", "language_projection")  # as in the papers (Li, 2023; Dai, 2023)
REMEDY = "name a BLIP-2 or InstructBLIP, as transformers saves it"


@dataclass(frozen=True, slots=True)
class QFormerModel:
    """A model of CLASSES and its processor."""

    model: Any
    processor: Any

    @property
    def vision(self) -> Any:
        """The configuration of the vision tower."""
        return self.model.config.vision_config

    @property
    def reads_question(self) -> bool:
        """Whether the Q-Former reads the question too, as that of InstructBLIP."""
        return self.model.config.model_type == "instructblip"

    @property
    def context(self) -> int | None:
        """The positions of the language model; None where they are relative (T5)."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None)


def has_qformer(start: str | None) -> bool:
    """Whether `start` is the folder of a model of CLASSES."""
    config = Path(start or "") / "config.json"
    return bool(start) and config.is_file() and read_json(config).get("model_type") in CLASSES


def open_qformer(folder: str) -> QFormerModel:
    """The model in `folder`, in float32. Raises VlmkitError."""
    kind = CLASSES[read_json(Path(folder) / "config.json")["model_type"]]
    try:
        load = getattr(transformers, kind).from_pretrained
        model, report = load(folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
        processor = transformers.AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise VlmkitError(f"{folder}: {first_line(error)}", REMEDY) from None
    if wrong := sorted(report["missing_keys"]):
        raise VlmkitError(f"{folder}: it lacks weights of a {kind} ({wrong[0]})", REMEDY)
    return QFormerModel(model, processor)


class QFormerLossModel(LoadedStrictly):
    """The model for training: the sum over the labels of its own loss.

    What is frozen stays as it is when it answers: without dropout. The Q-Former has that of its configuration.
    """

    def __init__(self, model: Any, config: VlmConfig) -> None:
        super().__init__()
        self.model, self.adapters = model, _adapters(model, config)
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED) or ".lora_" in name)
        if (precision := config.computes_in()) != "fp32":
            for parameter in model.parameters():
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.to(DTYPES[precision])

    def train(self, mode: bool = True) -> "QFormerLossModel":
        super().train(mode)
        self.model.vision_model.eval()
        self.model.language_model.train(mode and self.adapters is not None)
        return self

    def forward(self, weights: Tensor, **inputs: Tensor) -> Tensor:
        """`inputs` are those of the model, `weights` (S) ones, for each label."""
        return self.model(**inputs).loss.float() * len(weights)

    def merged(self) -> Any:
        """The model with its adapters merged into the language model."""
        if self.adapters is not None:
            self.model.language_model = self.adapters.merge_and_unload()
        return self.model


class _Unregistered:
    """Holds a module that is a part of another one already, out of sight of torch."""

    def __init__(self, module: Any) -> None:
        self.merge_and_unload = module.merge_and_unload


def _adapters(model: nn.Module, config: VlmConfig) -> Any:
    """Adapters of `config.lora` within the language model, on all linear layers but its head; else None."""
    if not config.lora:
        return None
    from peft import LoraConfig, get_peft_model

    language: Any = model.language_model
    head = language.get_output_embeddings()
    layers = [name for name, part in language.named_modules() if isinstance(part, ADAPTABLE) and part is not head]
    torch.manual_seed(config.seed)
    how = LoraConfig(r=config.lora, lora_alpha=2 * config.lora, lora_dropout=config.dropout, target_modules=layers)
    return _Unregistered(get_peft_model(language, how))


def stop_token(model: Any, tokenizer: Any) -> int:
    """The token with which replies end: one at which the language model stops. Raises VlmkitError."""
    known = model.language_model.generation_config.eos_token_id
    ends = known if isinstance(known, list) else [known] * (known is not None)
    if not ends:
        raise VlmkitError("the language model has no end token", REMEDY)
    return tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
