"""Chat templates in training: one rendering a conversation is as good as two a turn, and those that vlmkit ships."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_vlm_packing import CLOSES, DROPS, OPENS, REFUSES, THINKS
from vlm_data import CHATML, LLAMA_2, tokenizer

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.templates import TEMPLATES, chat_template
from vlmkit.train.data.samples import Dialogue, Turn
from vlmkit.train.vlm.tokenize import Chat

ENDLESS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
# As Qwen 3: a thought in a reply is taken out, but for the last one.
TAKES_OUT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last %}{{ m['content'] }}"
    "{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMS = CHATML.replace("m['content']", "m['content'] | trim | replace('??', '?')")


def chat(template: str) -> Chat:
    words = tokenizer(template)
    words.chat_template = template
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = SimpleNamespace(image_token_index=words.convert_tokens_to_ids("<image>"))
    vlm: Any = SimpleNamespace(processor=SimpleNamespace(tokenizer=words), model=SimpleNamespace(config=config))
    return Chat(vlm)


def made(encode: Chat, dialogue: Dialogue) -> list[tuple[list[int], list[bool]]]:
    return [(sample.input_ids.tolist(), sample.loss_mask.tolist()) for sample in encode(dialogue)]


TEXTS = [("<image>what?", "a cat"), ("why  ??", "<think>hm</think>so"), ("<image>\n<image>and?", "REPLY"), ("x", "y")]
TEMPLATES_OF_ALL = [CHATML, LLAMA_2, THINKS, CLOSES, OPENS, REFUSES + CHATML, DROPS, ENDLESS, TAKES_OUT, TRIMS]


@pytest.mark.parametrize("template", [*TEMPLATES_OF_ALL, *TEMPLATES.values()])
def test_one_rendering_is_as_good_as_two_a_turn(template: str) -> None:
    quick, slow = chat(template), chat(template)
    slow.frame = lambda system: None  # type: ignore[assignment, method-assign]
    assert (quick.frame(False) is None) == (template == OPENS)
    for system, count in product(("", "be brief"), (1, 2, 4)):
        dialogue = Dialogue("x", (), tuple(Turn(*texts) for texts in TEXTS[:count]), system)
        assert made(quick, dialogue) == made(slow, dialogue)


def test_a_conversation_is_rendered_once() -> None:
    encode = chat(CHATML)
    encode.frame(False)
    rendered = []
    apply = encode._apply
    encode._apply = lambda *a, **k: rendered.append(1) or apply(*a, **k)  # type: ignore[func-returns-value, method-assign]
    encode(Dialogue("x", (), tuple(Turn(f"{i}?", "so") for i in range(9))))
    assert len(rendered) == 1


SAID = {
    "vicuna": "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: hi ASSISTANT: hello</s>USER: why? ASSISTANT: so</s>",
    "llama-2": "<s>[INST] hi [/INST] hello </s><s>[INST] why? [/INST] so </s>",
    "chatml": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello</s>\n"
    "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\nso</s>\n",
}


@pytest.mark.parametrize("name", SAID)
def test_shipped_templates(name: str) -> None:
    encode = chat(chat_template(name))
    (sample,) = encode(Dialogue("x", (), (Turn("hi", "hello"), Turn("why?", "so"))))
    words = encode.tokenizer
    assert words.decode(sample.input_ids) == SAID[name]
    learned = words.decode(sample.input_ids[sample.loss_mask])
    assert learned.replace(" ", "") == "hello</s>so</s>" and encode.stop_token() == words.eos_token_id


def test_templates_by_name_and_file(tmp_path: Path) -> None:
    (tmp_path / "own").write_text(ENDLESS)
    assert chat_template(str(tmp_path / "own")) == ENDLESS
    with pytest.raises(VlmkitError, match="unknown template mistral: use vicuna, llama-2, chatml, or a file"):
        chat_template("mistral")
    with pytest.raises(VlmkitError, match=r"gone\.jinja: No such file"):
        chat_template(str(tmp_path / "gone.jinja"))
