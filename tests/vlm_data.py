"""Data and towers for training small vision-language models: coloured pictures, two tokenizers, random weights."""

import json
import socket
from pathlib import Path
from typing import Any

import torch
from helpers import records
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from warm import Running, Start

COLORS = ["red", "green", "blue", "black", "white", "yellow"]
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def write_data(folder: Path, count: int = 24) -> Path:
    """`captions.jsonl`, `questions.jsonl`, `mixed.jsonl` and `preferences.jsonl` about coloured pictures."""
    (folder / "pictures").mkdir(parents=True)
    captions, questions, mixed, preferences = [], [], [], []
    for i in range(count):
        color, other = COLORS[i % 6], COLORS[(i + 1) % 6]
        image = f"pictures/{i}.png"
        Image.new("RGB", (40 + i, 64), color).save(folder / image)
        about = {"id": f"s{i}", "image": image}
        captions.append(about | {"captions": [f"a {color} field", f"{color} all over"]})
        questions.append(about | {"question": "which color is it?", "answer": color})
        preferences.append(about | {"question": "which color is it?", "chosen": color, "rejected": other})
        turns = [("<image>what is it?", f"a {color} field"), ("which color?", color)]
        mixed.append(about | {"conversations": [said for turn in turns for said in _said(*turn)]})
    pair = {"id": "pair", "images": ["pictures/0.png", "pictures/1.png"]}
    mixed.append(pair | {"question": "<image> and <image>: the same?", "answer": "no"})
    preferences.append({"id": "text", "question": "are you there?", "chosen": "yes", "rejected": "no"})
    mixed.append({"id": "text", "question": "what is two and two?", "answer": "four"})
    for name, rows in (
        ("captions", captions),
        ("questions", questions),
        ("mixed", mixed),
        ("preferences", preferences),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Bytes, and the marks of both templates; ChatML's end is `<|im_end|>`, Llama 2's is `</s>`."""
    marks = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    end = "<|im_end|>" if template == CHATML else "</s>"
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token=end, pad_token="</s>", additional_special_tokens=marks[2:]
    )
    found.chat_template = template
    return found


def llama(folder: Path, template: str | None = CHATML) -> Path:
    """A Llama with a head of its own, whose table of embeddings has no row to spare."""
    words = tokenizer(template)
    config = LlamaConfig(vocab_size=len(words), num_key_value_heads=2, eos_token_id=words.eos_token_id, **SIZES)
    return _saved(folder, LlamaForCausalLM(config), words)


def qwen2(folder: Path) -> Path:
    """A Qwen 2: the head is the table of embeddings, which has rows to spare."""
    words = tokenizer()
    config = Qwen2Config(
        vocab_size=320, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=words.eos_token_id, **SIZES
    )
    return _saved(folder, Qwen2ForCausalLM(config), words)


def clip(folder: Path) -> Path:
    size = {"height": 32, "width": 32}
    config = CLIPVisionConfig(image_size=32, patch_size=8, **SIZES)
    return _saved(folder, CLIPVisionModel(config), CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size))


def siglip(folder: Path) -> Path:
    config = SiglipVisionConfig(image_size=32, patch_size=8, **SIZES)
    return _saved(folder, SiglipVisionModel(config), SiglipImageProcessor(size={"height": 32, "width": 32}))


def write_towers(folder: Path) -> Path:
    """Towers in `folder`; "mute" has no chat template."""
    clip(folder / "clip"), siglip(folder / "siglip"), llama(folder / "llama"), qwen2(folder / "qwen2")
    llama(folder / "mute", None)
    return folder


def line(data: Path, stage: str, name: str, out: str, *flags: object, towers: bool = True) -> list[str]:
    """A short run on real, small towers."""
    own = ["--vision", data / "clip", "--llm", data / "llama"] if towers else []
    words = ["train", stage, data / f"{name}.jsonl", "-o", out, "--preset", "debug", "--steps", "3", "-q", *own, *flags]
    return [str(word) for word in words]


def runs_together(start: Start, places: list[Path], words: list[str], count: int) -> list[Running]:
    """`count` processes of one run, each in its place."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    ranks = [where | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [start(place, *words, environment=rank) for place, rank in zip(places, ranks, strict=True)]


def together(start: Start, place: Path, words: list[str], count: int) -> list[dict]:
    """The log of `count` processes."""
    first, *others = [run.done() for run in runs_together(start, [place] * count, words, count)]
    assert not any(other.stdout + other.stderr for other in others)
    return records(first.stdout)


def _saved(folder: Path, model: Any, beside: Any) -> Path:
    torch.manual_seed(1)
    for value in model.parameters():
        if value.ndim > 1:  # livelier than they start, so that what a token attends to makes a difference
            torch.nn.init.normal_(value, std=0.15)
    model.save_pretrained(folder)
    beside.save_pretrained(folder)
    return folder
