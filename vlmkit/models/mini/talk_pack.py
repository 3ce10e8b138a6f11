"""From a folder of `vlmkit train` to the files that `mini` talks with: talk.onnx, its tokenizer, talk.json."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.models.mini.decoder import PLACE
from vlmkit.models.mini.features import IMAGE, PLACES
from vlmkit.models.mini.grid import FOLDER, MiniGridConfig
from vlmkit.models.mini.talk import CONFIG, GRAPH, TOKENIZER, Prompts
from vlmkit.models.mini.talk_graph import STORES, talk_side

SAMPLES = ["", "what color is the car?", "a dog, 2 men and   a boat?", "is it red"]


def pack_talk(folder: Path, out: Path, weights: str = "int8") -> None:
    """Write what `mini` talks with into the folder `out`, with `image.onnx` if that is a folder of its own.

    `folder` holds a LlavaForConditionalGeneration on mini's image tower with a Llama; `weights` are kept as int8,
    float16 or float32. Raises VlmkitError for models that talk.py would not run as they were trained.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    processor = AutoProcessor.from_pretrained(folder)
    _check_model(folder, model.config)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / GRAPH).write_bytes(
        talk_side(arrays, model.config, STORES[weights], model.generation_config.suppress_tokens or [])
    )
    processor.tokenizer.backend_tokenizer.save(str(out / TOKENIZER))
    settings = {"context": model.config.text_config.max_position_embeddings}
    (out / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    if not (out / IMAGE).exists():
        shutil.copyfile(FOLDER / IMAGE, out / IMAGE)
    _check_prompts(folder, processor, Prompts(out / TOKENIZER), model.generation_config.eos_token_id)


def _check_model(folder: Path, config: Any) -> None:
    text: Any = getattr(config, "text_config", None)
    known = (
        isinstance(getattr(config, "vision_config", None), MiniGridConfig)
        and text.model_type == "llama"
        and text.hidden_act == "silu"
        and text.rope_parameters["rope_type"] == "default"
        and config.projector_hidden_act == "gelu"
        and config.image_seq_length == PLACES
        and (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    )
    if not known:
        raise VlmkitError(f"{folder} is no Llama on the image tower of mini", "train it with --vision mini")


def _check_prompts(folder: Path, processor: Any, prompts: Prompts, end: int) -> None:
    """Raise VlmkitError unless the chat template makes the tokens that talk.py makes."""
    image = processor.image_token_id
    for pictures, question, system in product(range(3), SAMPLES, ["", "be brief"]):
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}] * bool(question)
        turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": content}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        text = text.replace(processor.image_token, processor.image_token * PLACES)
        expected = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if prompts.head(pictures, system) + prompts.tail(question) != [PLACE if i == image else i for i in expected]:
            what = f"{folder}: the chat template or the tokenizer are not those that mini talks with"
            raise VlmkitError(what, "train from what vlmkit.models.mini.words makes")
    if prompts.end != end:
        raise VlmkitError(f"{folder}: replies end in token {end}, not in </s>", "train it with </s>")
