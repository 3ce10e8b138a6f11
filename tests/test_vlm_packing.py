"""What the language stages learn, and that packing changes nothing: against the model's own call, one by one."""

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    GPT2Model,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralModel,
    Phi3Config,
    Phi3Model,
)
from vlm_data import CHATML, COLORS, LLAMA_2, SIZES, clip, llama, qwen2, siglip

from vlmkit.errors import VlmkitError
from vlmkit.models.chat.template import TemplateRefusal
from vlmkit.models.llava.connectors import reads_text
from vlmkit.models.llava.model import Vlm, build
from vlmkit.models.registry import CONNECTORS
from vlmkit.train.data.samples import Dialogue, Turn
from vlmkit.train.vlm.attention import packed_attention_mask
from vlmkit.train.vlm.collator import Group, collate
from vlmkit.train.vlm.dpo import pairs
from vlmkit.train.vlm.lora import adapted_layers
from vlmkit.train.vlm.loss import PackedLossModel
from vlmkit.train.vlm.packing import Packer
from vlmkit.train.vlm.tokenize import Chat, Plain, TokenizedSample

pytestmark = pytest.mark.slow

IMAGE = 9
NOT_INPUTS = "labels", "weights", "names", "tokens", "slots"  # of what the model's `hidden` takes
PICTURES = [Image.new("RGB", (40, 30), color) for color in COLORS]
DIALOGUES = [
    [
        Dialogue("a", (0,), (Turn("<image>what color is the car?", "red"), Turn("why?", "it is so"))),
        Dialogue("b", (0,), (Turn("<image>what dog?", "none"),)),
        Dialogue("c", (0,), (Turn("<image>where?", "here"),), system="be brief"),
    ],
    [Dialogue("d", (1,), (Turn("look: <image>", "a field"),)), Dialogue("e", (1,), (Turn("see <image>", "grass"),))],
    [Dialogue("f", (2, 3), (Turn("<image>\n<image>the same?", "no"), Turn("sure?", "yes")))],
    [
        Dialogue("g", (4,), (Turn("hello", "hello"), Turn("and <image>?", "white"))),
        Dialogue("h", (4,), (Turn("<image>", "!"),)),
    ],
    [Dialogue("i", (), (Turn("who are you?", "a model"),))],
]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    clip(folder / "clip"), siglip(folder / "siglip"), llama(folder / "llama"), qwen2(folder / "qwen2")
    llama(folder / "llama2", LLAMA_2), llama(folder / "mute", None)
    return folder


def make(towers: Path, vision: str = "clip", llm: str = "llama", connector: str = "mlp") -> Vlm:
    torch.manual_seed(2)
    vlm = build("patches" if vision == "patches" else str(towers / vision), str(towers / llm), connector)
    vlm.model.eval()
    return vlm


def packer_of(vlm: Vlm, length: int) -> Packer:
    share = not reads_text(vlm.model.model)
    return Packer(
        vlm.model.config.image_token_id, vlm.image_tokens, vlm.processor.tokenizer.pad_token_id, length, share
    )


def pixels(vlm: Vlm, numbers: tuple[Any, ...]) -> list[torch.Tensor]:
    return [vlm.processor.image_processor(PICTURES[i], return_tensors="pt")["pixel_values"][0] for i in numbers]


def groups_of(vlm: Vlm) -> list[Group]:
    encode = Chat(vlm)
    return [Group(about[0].id, about[0].pictures, [encode(d)[0] for d in about], False) for about in DIALOGUES]


# transformers 5.24 calls it cache
CACHE = "cache" if "cache" in signature(LlavaForConditionalGeneration.forward).parameters else "past_key_values"


@torch.no_grad()
def one_by_one(vlm: Vlm, dialogue: Dialogue, learned: np.ndarray) -> torch.Tensor:
    """The logits before each learned token, by the processor and the model as transformers documents them."""
    messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for turn in dialogue.turns:
        messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.reply}]
    text = vlm.processor.tokenizer.apply_chat_template(messages, tokenize=False)
    images = [PICTURES[i] for i in dialogue.pictures] or None
    inputs = vlm.processor(images=images, text=text, return_tensors="pt", add_special_tokens=False)
    assert inputs["input_ids"].shape[1] == len(learned)
    if not reads_text(vlm.model.model) or not images:
        return vlm.model(**inputs).logits[0, learned.nonzero()[0] - 1]
    # Such a connector sees the prompt: it is run first, and then continued, as generation does.
    ids, first = inputs["input_ids"], int(learned.argmax())
    prompt = {"attention_mask": inputs["attention_mask"][:, :first], "pixel_values": inputs["pixel_values"]}
    start = vlm.model(input_ids=ids[:, :first], use_cache=True, **prompt)
    rest = vlm.model(input_ids=ids[:, first:], **{CACHE: start.past_key_values})
    return torch.cat([start.logits, rest.logits], 1)[0, learned.nonzero()[0] - 1]


@pytest.mark.parametrize(
    ("vision", "llm", "connector"),
    [("clip", "llama", name) for name in CONNECTORS.builtin]
    + [("siglip", "qwen2", "mlp"), ("patches", "qwen2", "adaptive")],
)
@pytest.mark.parametrize("length", [120, 2000])
def test_packed_logits_are_those_of_the_model_itself(
    towers: Path, vision: str, llm: str, connector: str, length: int
) -> None:
    vlm = make(towers, vision, llm, connector)
    packer = packer_of(vlm, length)
    groups = [
        group
        for group in groups_of(vlm)
        if not reads_text(vlm.model.model) or group.name not in ("d", "g")  # a picture after the first reply
    ]
    batch = collate(packer, [(group, pixels(vlm, group.pictures)) for group in groups])
    inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS}
    with torch.no_grad():
        packed = vlm.model.lm_head(PackedLossModel(vlm.model).eval().hidden(**inputs))
    spoken = {group[0].id: group for group in DIALOGUES}
    expected, labels = [], []
    for group in groups:
        for dialogue, sequence in zip(spoken[group.name], group.samples, strict=True):
            whole = packer.expand_image_tokens(sequence)
            expected.append(one_by_one(vlm, dialogue, whole.loss_mask))
            labels += whole.input_ids[whole.loss_mask].tolist()
    exact = torch.cat(expected)
    assert len(packed) == len(exact)
    if length == 2000:
        assert len(batch["input_ids"]) == 1 and batch["labels"].tolist() == labels
        assert torch.allclose(packed, exact, atol=1e-5, rtol=0)
        return
    assert len(batch["input_ids"]) > 2, "several rows, in another order"
    left = list(range(len(exact)))
    for row, label in zip(packed, batch["labels"].tolist(), strict=True):
        found = next(i for i in left if labels[i] == label and torch.allclose(exact[i], row, atol=1e-5, rtol=0))
        left.remove(found)


def spelled(vlm: Vlm, text: str) -> list[int]:
    """Token ids by hand: each mark and each letter is one token."""
    words = vlm.processor.tokenizer
    marks = ["<|im_start|>", "<|im_end|>", "</s>", "<s>", "<image>"]
    ids = []
    while text:
        mark = next((m for m in marks if text.startswith(m)), None)
        ids += [words.convert_tokens_to_ids(mark)] if mark else words.encode(text[0], add_special_tokens=False)
        text = text[len(mark or text[0]) :]
    return ids


@pytest.mark.parametrize(
    ("llm", "parts"),
    [
        (
            "llama",
            [
                ("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n<image>what?<|im_end|>\n", False),
                ("<|im_start|>assistant\n", False),
                ("a cat<|im_end|>", True),
                ("\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n", False),
                ("so<|im_end|>", True),
                ("\n", False),
            ],
        ),
        (
            "llama2",
            [
                ("<s>[INST] <image>what? [/INST]", False),
                (" a cat </s>", True),
                ("<s>[INST] why? [/INST]", False),
                (" so </s>", True),
            ],
        ),
    ],
)
def test_replies_and_their_end_are_learned_and_nothing_else(
    towers: Path, llm: str, parts: list[tuple[str, bool]]
) -> None:
    vlm = make(towers, llm=llm)
    turns = Turn("<image>what?", "a cat"), Turn("why?", "so")
    (sequence,) = Chat(vlm)(Dialogue("x", (0,), turns, "be brief" if llm == "llama" else ""))
    expected = [(token, learned) for text, learned in parts for token in spelled(vlm, text)]
    assert list(zip(sequence.input_ids.tolist(), sequence.loss_mask.tolist(), strict=True)) == expected


def test_a_template_without_an_end_gets_one(towers: Path) -> None:
    vlm = make(towers)
    vlm.processor.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    assert Chat(vlm).stop_token() is None
    (sequence,) = Chat(vlm)(Dialogue("x", (), (Turn("hi", "hello"),)))
    assert sequence.input_ids[sequence.loss_mask].tolist() == [
        *spelled(vlm, "assistant: hello"),
        vlm.model.config.eos_token_id,
    ]


def test_captions_follow_their_picture(towers: Path) -> None:
    vlm = make(towers)
    caption = Dialogue("x", (0,), (Turn("<image>", "a cat"),))
    (sequence,) = Plain(vlm)(caption)
    assert sequence.input_ids.tolist() == spelled(vlm, "<image>a cat<|im_end|>")
    assert sequence.loss_mask.tolist() == [False, *[True] * 6]
    tokenizer = vlm.processor.tokenizer
    begins = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begins  # as that of Llama 2 does
    assert Plain(vlm)(caption)[0].input_ids.tolist() == spelled(vlm, "<s><image>a cat<|im_end|>")


TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
USER = "{{ '<|im_start|>user\n' + m['content'] + '<|im_end|>\n' }}"
EMPTY_THOUGHT = "{{ '<think>\n\n</think>\n\n' if loop.last and m['role'] == 'assistant' }}"
START = "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
# Templates that add an empty thought, end a conversation with one more mark, or begin each reply with a thought.
THINKS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + EMPTY_THOUGHT + "{{ m['content'] }}<|im_end|>\n"
THINKS += "{% endfor %}" + START
CLOSES = (
    "{% for m in messages %}"
    + TURN
    + "{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt else '</s>' }}"
)
OPENS = (
    "{% for m in messages %}" + TURN + "{% endfor %}{{ '<|im_start|>assistant\n<think>\n' if add_generation_prompt }}"
)
CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("template", "samples", "prompt"),
    [
        (THINKS, 1, "<|im_start|>assistant\n"),
        (CLOSES, 1, "<|im_start|>assistant\n"),
        (OPENS, 2, CLOSED),
    ],
)
def test_replies_follow_the_prompt_of_run_time(towers: Path, template: str, samples: int, prompt: str) -> None:
    vlm = make(towers)
    words = vlm.processor.tokenizer
    words.chat_template = template
    found = Chat(vlm)(Dialogue("x", (0,), (Turn("<image>what?", "a cat"), Turn("why?", "so"))))
    assert len(found) == samples
    assert Chat(vlm).stop_token() == words.convert_tokens_to_ids("<|im_end|>")
    learned = [words.decode(sample.input_ids[sample.loss_mask]) for sample in found]
    assert "".join(learned).replace(" ", "") == "acat<|im_end|>so<|im_end|>"
    first = spelled(vlm, f"<|im_start|>user\n<image>what?<|im_end|>\n{prompt}a cat<|im_end|>")
    assert found[0].input_ids[: len(first)].tolist() == first
    packer = packer_of(vlm, 200)
    batch = packer.pack([(found, [7])])
    assert batch.pictures in ([7], [7, 7]) and len(batch.labels) == sum(sample.loss_mask.sum() for sample in found)


REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
DROPS = "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + START


@pytest.mark.parametrize("template", [REFUSES + CHATML, DROPS])
def test_a_system_text_that_a_template_does_not_take_begins_the_question(towers: Path, template: str) -> None:
    vlm = make(towers)
    vlm.processor.tokenizer.chat_template = template
    (sample,) = Chat(vlm)(Dialogue("x", (0,), (Turn("<image>what?", "a cat"),), "be brief"))
    expected = "<|im_start|>user\nbe brief\n\n<image>what?<|im_end|>\n<|im_start|>assistant\na cat<|im_end|>\n"
    assert sample.input_ids.tolist() == spelled(vlm, expected)


def test_templates_that_refuse_or_lack(towers: Path) -> None:
    with pytest.raises(VlmkitError, match="no chat template: name a chat"):
        Chat(make(towers, llm="mute"))
    vlm = make(towers)
    for template, reason in (
        ("{{ raise_exception('one turn alone') if messages | length > 2 }}" + CHATML, "one turn alone"),
        ("{{ messages[0]['content'] }}", "it writes no replies"),
    ):
        vlm.processor.tokenizer.chat_template = template
        with pytest.raises(TemplateRefusal, match=reason):
            Chat(vlm)(Dialogue("x", (), (Turn("a", "b"), Turn("c", "d"))))


def test_adapters_on_all_linear_layers_of_the_language_model() -> None:
    sizes: Any = SIZES | {"num_hidden_layers": 1, "vocab_size": 64, "pad_token_id": 0}
    for config, model_class, layers, others in (
        (Phi3Config(**sizes), Phi3Model, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, 0),
        (GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64), GPT2Model, {"c_attn", "c_proj", "c_fc"}, 0),
        (MixtralConfig(**sizes, num_local_experts=2), MixtralModel, {"q_proj", "k_proj", "v_proj", "o_proj"}, 2),
    ):
        holder: Any = torch.nn.Module()
        holder.model = torch.nn.Module()
        with torch.device("meta"):
            holder.model.language_model = model_class(config)
            holder.model.vision_tower = torch.nn.Linear(2, 2)
        found, left_out = adapted_layers(holder)
        assert {name.rpartition(".")[2] for name in found} >= layers and "model.vision_tower" not in found
        assert all("experts" in name or "gate" in name for name in left_out) and len(left_out) >= others


def test_what_is_cut(towers: Path) -> None:
    vlm = make(towers)
    packer = packer_of(vlm, 100)
    (sequence,) = Plain(vlm)(Dialogue("x", (0,), (Turn("<image>", "a cat"),)))  # 16 + 6 tokens
    assert packer.size(sequence) == 22 == len(packer.expand_image_tokens(sequence).input_ids)
    assert packer.truncate(sequence, 22) is sequence
    shorter = packer.truncate(sequence, 18)
    assert shorter and packer.size(shorter) == 18 and shorter.loss_mask.sum() == 2
    assert packer.truncate(sequence, 16) is None, "nothing would be learned"
    (late,) = Chat(vlm)(Dialogue("x", (0,), (Turn("hi", "hello"), Turn("<image>?", "a cat"))))
    assert packer.truncate(late, packer.size(late) // 2) is None, "its image tokens would be cut"


def test_connectors_that_read_learn_from_captions_without_a_prompt(towers: Path) -> None:
    vlm = make(towers, llm="qwen2", connector="adaptive")
    vlm.processor.tokenizer.bos_token = None  # as Qwen's: then nothing but the picture stands before the caption
    (sequence,) = Plain(vlm)(Dialogue("x", (0,), (Turn("<image>", "a cat"),)))
    packer = packer_of(vlm, 100)
    batch = collate(packer, [(Group("x", (0,), [sequence], False), pixels(vlm, (0,)))])
    inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS}
    whole = packer.expand_image_tokens(sequence)
    with torch.no_grad():
        packed = vlm.model.lm_head(PackedLossModel(vlm.model).eval().hidden(**inputs))
        prompt = torch.from_numpy(whole.input_ids[~whole.loss_mask][None].astype(np.int64))
        exact = vlm.model(input_ids=prompt, pixel_values=torch.stack(pixels(vlm, (0,)))).logits[0, -1]
    assert torch.isfinite(exact).all() and torch.allclose(packed[0], exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("connector", ["mlp", "adaptive"])
def test_preferences_have_the_same_logits(towers: Path, connector: str) -> None:
    """What TRL is given, run as it runs it, against instruct's rows."""
    vlm = make(towers, connector=connector)
    packer = packer_of(vlm, 2000)
    encode = Chat(vlm)
    chosen, rejected = (encode(Dialogue("x", (0,), (Turn("<image>what?", reply),)))[0] for reply in ("a cat", "no"))
    other = [encode(Dialogue("y", (1,), (Turn("<image>which color is it?", reply),)))[0] for reply in ("red", "blue")]
    items = [(Group("x", (0,), [chosen, rejected], False), pixels(vlm, (0,)))]
    items += [(Group("y", (1,), other, False), pixels(vlm, (1,)))]
    batch = pairs(packer, reads_text(vlm.model.model))(items)
    rows = collate(packer, items)
    inputs = {name: value for name, value in rows.items() if name not in NOT_INPUTS}
    learned = batch.pop("completion_mask").bool()
    assert batch.pop("names") == ("x", "y")
    assert batch.pop("tokens") == sum(packer.size(s) for s in (chosen, rejected, *other))
    with torch.no_grad():
        logits = vlm.model(**batch).logits[:, :-1][learned[:, 1:]]
        expected = vlm.model.lm_head(PackedLossModel(vlm.model).eval().hidden(**inputs))
    counts = [s.loss_mask.sum() for s in (chosen, other[0], rejected, other[1])]
    a, b, c, d = logits.split(counts)
    assert torch.allclose(torch.cat([a, c, b, d]), expected, atol=1e-5, rtol=0)


@some.composite
def groups(draw: some.DrawFn) -> list[tuple[list[TokenizedSample], list[int]]]:
    """Groups of sequences that begin alike; the first token is never learned, image tokens never."""
    found, pictures = [], 0
    for _ in range(draw(some.integers(1, 4))):
        prefix = draw(some.lists(some.sampled_from([1, 2, IMAGE]), max_size=4))
        sequences = []
        images = draw(some.integers(0, 2))
        for _ in range(draw(some.integers(1, 3))):
            rest = draw(some.lists(some.tuples(some.integers(1, 4), some.booleans()), min_size=1, max_size=5))
            ids = [5, *(t for t in prefix if t != IMAGE), *[IMAGE] * images, *(token for token, _ in rest), 7]
            learned = [*[False] * (len(ids) - len(rest) - 1), *(is_learned for _, is_learned in rest), True]
            sequences.append(TokenizedSample(np.array(ids, np.int32), np.array(learned)))
        found.append((sequences, list(range(pictures, pictures + images))))
        pictures += images
    return found


@given(groups(), some.integers(8, 60), some.booleans())
def test_each_learned_token_sees_its_own_past_alone(
    drawn: list[tuple[list[TokenizedSample], list[int]]], length: int, share: bool
) -> None:
    packer = Packer(IMAGE, 3, 0, length, share)
    rows = packer.pack(drawn)
    visible = packed_attention_mask(torch.from_numpy(rows.segment_ids), torch.from_numpy(rows.branch_ids)).numpy()
    shown = np.full(rows.input_ids.shape, -1)
    shown[rows.input_ids == IMAGE] = np.repeat(rows.pictures, 3)
    seen = []
    for place, label in zip(rows.label_positions, rows.labels, strict=True):
        r, column = divmod(int(place), rows.input_ids.shape[1])
        past = np.flatnonzero(visible[r, column])
        past = past[np.argsort(rows.position_ids[r, past])]
        assert rows.position_ids[r, past].tolist() == list(range(len(past)))
        seen.append((*zip(rows.input_ids[r, past].tolist(), shown[r, past].tolist(), strict=True), int(label)))
    expected = []
    for sequences, pictures in drawn:
        for whole in map(packer.expand_image_tokens, sequences):
            pair = np.full(len(whole.input_ids), -1)
            pair[whole.input_ids == IMAGE] = np.repeat(pictures, 3)
            past = [*zip(whole.input_ids.tolist(), pair.tolist(), strict=True)]
            expected += [(*past[:at], int(whole.input_ids[at])) for at in np.flatnonzero(whole.loss_mask)]
    assert sorted(seen, key=str) == sorted(expected, key=str)


def test_a_reply_weighs_by_its_length(towers: Path) -> None:
    vlm = make(towers)
    items = [(group, pixels(vlm, group.pictures)) for group in groups_of(vlm)]
    for power in (0, 0.5, 1):
        batch = collate(packer_of(vlm, 2000), items, power)
        expected = []
        for about in DIALOGUES:
            for dialogue in about:
                for turn in dialogue.turns:  # each letter is a token, and the end mark another
                    length = len(turn.reply) + 1
                    expected += [length**-power] * length
        assert batch["weights"].tolist() == pytest.approx(expected)


def test_dropout_reaches_each_block_and_only_in_training(towers: Path) -> None:
    vlm = make(towers)
    items = [(group, pixels(vlm, group.pictures)) for group in groups_of(vlm)]
    batch = collate(packer_of(vlm, 2000), items)
    inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS}
    changed: list[str] = []
    with torch.no_grad():
        plain = PackedLossModel(vlm.model).eval().hidden(**inputs)
        learner = PackedLossModel(vlm.model, 0.5)
        assert torch.equal(learner.eval().hidden(**inputs), plain)
        for name, block in vlm.model.model.language_model.named_modules():
            if name.endswith((".self_attn", ".mlp")):
                block.register_forward_hook(lambda _, __, out, name=name: changed.append(name) if zeros(out) else None)
        learner.train().hidden(**inputs)
    assert len(changed) == 2 * vlm.model.config.text_config.num_hidden_layers


def zeros(out: Any) -> bool:
    """Whether about half of what a block gives is nothing."""
    values = out[0] if isinstance(out, tuple) else out
    return 0.4 < float((values == 0).float().mean()) < 0.6
