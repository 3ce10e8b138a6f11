"""Vision-language models of the LLaVA form: put together from two towers, or opened from a folder.

`LlavaForConditionalGeneration` takes any CLIP or SigLIP vision tower and any causal language model (Liu and others,
2023), so what is saved opens in transformers alone, except with the connectors and towers marked as not native.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionModel,
)
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from vlmkit.errors import VlmkitError, first_line
from vlmkit.models.llava.connectors import ConnectorConfig, ConnectorLlava
from vlmkit.models.llava.vision import MiniGridConfig, MiniGridModel, PatchesConfig, PatchesModel, image_processor
from vlmkit.models.registry import CONNECTORS
from vlmkit.models.resolve import full_name

IMAGE = "<image>"
TOWERS: dict[str, Any] = {"clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel}
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
ROWS = 64  # embedding tables grow to a multiple of it
# A language model's template takes a message's content as a string; processors hand over a list of parts. Pictures and
# text stand on lines of their own, as in LLaVA's data.
PARTS = """\
{%- set ns = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set ns.messages = ns.messages + [message] -%}
{%- else -%}
{%- set line = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- set gap = '\\n' if line.text.endswith('<image>') else '' -%}
{%- set line.text = line.text + gap + ('<image>' if part['type'] == 'image' else part['text']) -%}
{%- endfor -%}
{%- set ns.messages = ns.messages + [{'role': message['role'], 'content': line.text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = ns.messages -%}
"""


@dataclass(frozen=True, slots=True)
class Vlm:
    """A model and its processor; `image_tokens` is how many stand for one picture."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor

    @property
    def image_tokens(self) -> int:
        """As LlavaProcessor counts them; its own method for that knows no SigLIP, whose pictures are not cropped."""
        rule: Any = self.processor
        patches = (self.vision.image_size // rule.patch_size) ** 2
        return patches + rule.num_additional_image_tokens - (rule.vision_feature_select_strategy == "default")

    @property
    def vision(self) -> Any:
        """The configuration of the vision tower."""
        return self.model.config.vision_config

    @property
    def connector(self) -> str:
        return getattr(self.model.config, "connector", "mlp")


def open_vlm(folder: str, four_bit: str | None = None) -> Vlm:
    """The model in a folder that training made, its language model in 4 bits on the device `four_bit` if that is given.

    Raises VlmkitError.
    """
    how = _four_bit(["model.vision_tower", "model.multi_modal_projector", "lm_head"], four_bit) if four_bit else {}
    try:
        config = AutoConfig.from_pretrained(folder)
        if not isinstance(config, LlavaConfig):
            raise VlmkitError(f"{folder}: a {config.model_type} model, not one of the LLaVA form", "name another one")
        load = AutoModelForImageTextToText.from_pretrained
        opened: Any = load(folder, dtype=torch.float32, output_loading_info=True, **how)
        model, report = opened
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise VlmkitError(f"{folder}: {first_line(error)}", "name a folder that vlmkit train made") from None
    if wrong := sorted(report["missing_keys"]) or sorted(report["unexpected_keys"]):
        raise VlmkitError(f"{folder}: its weights do not fit its configuration ({wrong[0]})", "train it again")
    return Vlm(model, processor)


def build(vision: str, llm: str, connector: str, four_bit: str | None = None) -> Vlm:
    """A new model from a vision tower and a language model; new weights are drawn from PyTorch's generator.

    `vision` is a CLIP or SigLIP model by name or folder, "mini" or "patches"; `llm` a causal language model, taken in
    4 bits on the device `four_bit` if that is given. The weights of a folder with a configuration alone are new.

    Raises VlmkitError.
    """
    tower, pictures = _tower(full_name(vision))
    language, tokenizer = _language(full_name(llm), four_bit)
    image_token = _add_image_token(language, tokenizer)
    kind = tower.config.model_type
    config: Any = {
        "vision_config": _settings(tower),
        "text_config": _settings(language),
        "image_token_index": image_token,
        "vision_feature_layer": -2 if kind == "clip_vision_model" else -1,
        "vision_feature_select_strategy": "default" if kind == "clip_vision_model" else "full",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": bool(language.config.tie_word_embeddings),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if connector not in CONNECTORS:
        raise VlmkitError(f"unknown connector {connector}", f"use {', '.join(CONNECTORS)}")
    connector_class = CONNECTORS.load(connector)
    projector: nn.Module = connector_class(tower.config.hidden_size, language.config.hidden_size)
    made: Any = LlavaConfig(**config) if connector_class.native else ConnectorConfig(**config, connector=connector)
    model_class: Any = LlavaForConditionalGeneration if connector_class.native else ConnectorLlava
    with torch.device("meta"):
        model = model_class(made)
    model.model.vision_tower, model.model.language_model = tower, language.base_model
    model.model.multi_modal_projector = projector
    model.lm_head = language.get_output_embeddings()
    model.tie_weights()
    model.generation_config = language.generation_config
    if four_bit:
        _mark_quantized(model, language)
    side, patch, tokens = tower.config.image_size, tower.config.patch_size, connector_class.tokens
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=side // math.isqrt(tokens) if tokens else patch,
        vision_feature_select_strategy="full" if tokens else made.vision_feature_select_strategy,
        num_additional_image_tokens=int(kind == "clip_vision_model" and not tokens),
        chat_template=PARTS + tokenizer.chat_template if tokenizer.chat_template else None,
    )
    found = Vlm(model, processor)
    made.image_seq_length = found.image_tokens
    return found


def use_template(vlm: Vlm, template: str) -> None:
    """Have conversations written by the chat `template`, Jinja's source."""
    vlm.processor.tokenizer.chat_template = template
    vlm.processor.chat_template = PARTS + template


def pad_to_square(vlm: Vlm) -> None:
    """Have pictures padded to a square with the mean colour instead of cropped, as LLaVA-1.5 does in stage 2."""
    crop = vlm.processor.image_processor
    if vlm.vision.model_type != "clip_vision_model":
        return
    side = vlm.vision.image_size
    vlm.processor.image_processor = LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=crop.image_mean,
        image_std=crop.image_std,
    )


def _tower(name: str) -> tuple[Any, Any]:
    if name == "mini":
        return MiniGridModel(MiniGridConfig()), image_processor()
    if name == "patches":
        config = PatchesConfig()
        half = [0.5, 0.5, 0.5]
        return PatchesModel(config), _square(config.image_size, half, half)
    try:
        config = AutoConfig.from_pretrained(name)
        config = getattr(config, "vision_config", config)
        if config.model_type not in TOWERS:
            raise VlmkitError(f"{name}: {config.model_type} is no CLIP or SigLIP tower", "name another --vision")
        kind = TOWERS[config.model_type]
        tower = kind.from_pretrained(name, dtype=torch.float32) if _has_weights(name) else kind(config)
    except (OSError, ValueError, SafetensorError) as error:
        raise VlmkitError(f"{name}: {first_line(error)}", "name a CLIP or SigLIP model, or a folder") from None
    try:
        return tower, AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        return tower, _square(config.image_size, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


def _square(side: int, mean: list[float], std: list[float]) -> LlavaImageProcessor:
    crop = {"height": side, "width": side}
    return LlavaImageProcessor(size={"shortest_edge": side}, crop_size=crop, image_mean=mean, image_std=std)


def _language(name: str, four_bit: str | None) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        if _has_weights(name):
            how = _four_bit(["lm_head"], four_bit) if four_bit else {}
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **how)
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name))
    except (OSError, ValueError, SafetensorError) as error:
        raise VlmkitError(f"{name}: {first_line(error)}", "name a causal language model, or a folder") from None
    if tokenizer.eos_token_id is None:
        raise VlmkitError(f"{name}: its tokenizer has no end token", "name another --llm")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _four_bit(but: list[str], device: str) -> dict[str, Any]:
    """How QLoRA (Dettmers and others, 2023) loads a model on the process's `device`, all but the modules named."""
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=but,
    )
    place = int(os.environ.get("LOCAL_RANK", "0")) if device == "cuda" else device
    return {"quantization_config": how, "device_map": {"": place}}


def _mark_quantized(model: Any, language: Any) -> None:
    """Tell peft, accelerate and `Trainer` of `model` what transformers told of its part `language`."""
    for name in ("is_loaded_in_4bit", "is_quantized", "quantization_method", "hf_quantizer"):
        if hasattr(language, name):
            setattr(model, name, getattr(language, name))
    model.config.quantization_config = language.config.quantization_config


def _has_weights(name: str) -> bool:
    folder = Path(name)
    return not folder.is_dir() or any(found for pattern in WEIGHTS for found in folder.glob(pattern))


def _settings(model: Any) -> dict[str, Any]:
    """The configuration of a part, without where and how it was loaded."""
    found = model.config.to_dict()
    return {name: value for name, value in found.items() if name not in ("_name_or_path", "quantization_config")}


def _add_image_token(language: Any, tokenizer: Any) -> int:
    """The id of `<image>`. Tables with spare rows keep their size: other ones would be cut."""
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    token = tokenizer.convert_tokens_to_ids(IMAGE)
    rows = language.get_input_embeddings().weight.shape[0]
    if token >= rows:
        language.resize_token_embeddings(-(-(token + 1) // ROWS) * ROWS, mean_resizing=False)
        with torch.no_grad():
            for table in {language.get_input_embeddings().weight, language.get_output_embeddings().weight}:
                table[rows:] = 0
    # The language model never said what it is given here, and must not begin to.
    new = range(rows, language.get_input_embeddings().weight.shape[0])
    language.generation_config.suppress_tokens = [token] if token < rows else list(new)
    return token


def save(vlm: Vlm, folder: Path) -> None:
    """Weights under the names that both versions read, configuration, processor, template, generation settings.

    transformers 5 calls a tower's weights `vision_tower.embeddings...`, 4.57 `vision_tower.vision_model...`, and
    starts from a random tower where it does not find them. 5 reads both.
    """
    model = vlm.model
    kept = model.generation_config
    kept.do_sample, kept.temperature, kept.top_p, kept.top_k = False, None, None, None
    weights = model.state_dict()
    if vlm.vision.model_type in TOWERS:
        weights = {_old(name): value for name, value in weights.items()}
    model.save_pretrained(folder, state_dict=weights, save_original_format=False)
    vlm.processor.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {"model_input_names": vlm.processor.tokenizer.model_input_names} | json.loads(path.read_text())
    path.write_text(json.dumps(_readable(settings), indent=2, ensure_ascii=False) + "\n")


def _readable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a tokenizer under names that 4.57 reads as well."""
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _old(name: str) -> str:
    head = "model.vision_tower."
    if name.startswith(head) and not name.startswith(head + "vision_model."):
        return f"{head}vision_model.{name.removeprefix(head)}"
    return name
