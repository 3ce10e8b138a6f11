"""Folders of transformers against the call that its documentation shows; random weights."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import jsonl, noise, records
from PIL import Image
from tiny_llava import clip_tower, tiny_llava
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmkit.errors import VlmkitError
from vlmkit.models.load import load_chat_model
from vlmkit.models.types import Answer, Request, Sampling

pytestmark = pytest.mark.slow

OF_A_LANGUAGE_MODEL = (
    "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else m['role'] + ' ' }}{{ m['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
QUESTIONS = ["what color is it?", "a dog", "is it red", "x"]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA on a CLIP tower."""
    folder = tmp_path_factory.mktemp("models")
    tiny_llava(folder / "llava", vision=clip_tower(folder / "clip"))
    return folder / "llava"


@pytest.fixture
def copied(llava: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(llava, tmp_path / "copied"))


def documented(folder: Path, pictures: list[Image.Image], prompt: str, **how: object) -> str:
    """processor(images, text), generate, decode what is new."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(images=pictures or None, text=prompt, return_tensors="pt")
    made = model.generate(**inputs, **{"max_new_tokens": 10, "do_sample": False, "renormalize_logits": True} | how)
    return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(array) for array in noise(count)]


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_the_documented_call(llava: Path, beams: int) -> None:
    """In one batch: prompts of several lengths about one, two and no pictures."""
    some = pictures(4)
    shown = [[some[0]], [some[1], some[2]], [], [some[3]]]
    model = load_chat_model(str(llava))
    answers = model.answer(
        [Request(question, [model.preprocess(one) for one in p]) for question, p in zip(QUESTIONS, shown, strict=True)],
        Sampling(10, beams=beams),
    )
    prompts = [f"<user>{'<image>' * len(p)}{question}<reply>" for question, p in zip(QUESTIONS, shown, strict=True)]
    expected = [documented(llava, p, prompt, num_beams=beams) for p, prompt in zip(shown, prompts, strict=True)]
    assert [answer.text for answer in answers if isinstance(answer, Answer)] == expected
    assert len(set(expected)) > 2
    assert all(answer.tokens == 10 if answer.finish == "length" else answer.tokens <= 10 for answer in answers)


@pytest.mark.parametrize("tower", ["clip", "mini"])
@pytest.mark.parametrize("beams", [1, 3])
def test_questions_about_one_picture_look_at_it_once(llava: Path, talking: Path, tower: str, beams: int) -> None:
    (picture,) = pictures(1)
    folder = {"clip": llava, "mini": talking / "trained"}[tower]
    model = load_chat_model(str(folder))
    expected = [documented(folder, [picture], f"<user><image>{q}<reply>", num_beams=beams) for q in QUESTIONS]
    vision, seen = model._model.model.vision_tower, []
    vision.register_forward_pre_hook(
        lambda _, args, named: seen.append(len((*args, *named.values())[0])), with_kwargs=True
    )
    answers = model.answer([Request(question, [picture]) for question in QUESTIONS], Sampling(10, beams=beams))
    assert [answer.text for answer in answers] == expected and seen == [1]


def test_the_template_of_a_language_model_gets_strings(copied: Path) -> None:
    (copied / "chat_template.jinja").write_text(OF_A_LANGUAGE_MODEL)
    (picture,) = pictures(1)
    model = load_chat_model(str(copied))
    (answer,) = model.answer([Request("a dog", [picture], system="be kind")], Sampling(10))
    assert isinstance(answer, Answer)
    assert answer.text == documented(copied, [picture], "system be kind\n<user><image>\na dog\n<reply>")


def test_after_alignment_alone_there_is_no_conversation(copied: Path) -> None:
    (picture,) = pictures(1)
    (copied / "train.toml").write_text('stage = "align"\n')
    (copied / "chat_template.jinja").unlink()
    model = load_chat_model(str(copied))
    described, continued, asked = model.answer(
        [Request(model.captions["normal"].prompt, [picture]), Request("a cat is"), Request("what is it", [picture])],
        Sampling(10),
    )
    expected = [
        documented(copied, *of) for of in [([picture], "<image>"), ([], "a cat is"), ([picture], "<image>\nwhat is it")]
    ]
    assert [described.text, continued.text, asked.text] == expected


def test_a_start_a_system_text_and_marks_in_the_question(llava: Path) -> None:
    (picture,) = pictures(1)
    model = load_chat_model(str(llava))
    request = Request("<image>a<reply> dog", [picture], start="this is")
    (answer,) = model.answer([request], Sampling(10))
    assert isinstance(answer, Answer)
    expected = documented(llava, [picture], "<user><image>a  dog<reply>this is")
    assert answer.text.removeprefix("this is").strip() == expected
    first, second = (
        model.answer([Request("x", [picture], number=number)], Sampling(10, temperature=1.0, seed=3))[0].text
        for number in (0, 0)
    )
    assert first == second


def test_on_the_tower_of_mini_both_ways_agree(talking: Path, photos: Path, warm) -> None:
    """The folder that was trained, by PyTorch, and what mini makes of it."""
    names = "coffee.png", "chelsea.png", "rocket.jpg"
    rows = jsonl(*({"image": str(photos / name), "question": "what is it?"} for name in names))
    trained = records(warm("ask", "-m", talking / "trained", "--max-tokens", 8, stdin=rows).stdout)
    packed = records(warm("ask", "-m", talking / "packed", "--max-tokens", 8, stdin=rows).stdout)
    assert [row["answer"] for row in trained] == [row["answer"] for row in packed]
    assert len({row["answer"] for row in trained}) == 3
    assert trained[0]["answer_model"].startswith(f"{talking / 'trained'}@")


def test_no_code_of_a_folder_is_run(copied: Path, warm, photos: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "evil.py").write_text("print('owned')\n")
    done = warm("ask", "-m", copied, photos / "coffee.png", "what?", code=2, stdin=b"y\n")
    assert done.stdout == b"" and done.stderr.count(b"\n") == 1 and b"cannot be opened" in done.stderr


def test_folders_that_cannot_talk_are_reported(copied: Path, tmp_path: Path, warm, photos: Path) -> None:
    picture = photos / "coffee.png"
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/config.json").write_text('{"model_type": "clip"}')
    reasons = {
        "empty": b"contains no model that can answer",
        "clip": b"contains a model of type clip, which cannot answer",
    }
    for name, reason in reasons.items():
        assert reason in warm("ask", "-m", tmp_path / name, picture, "what?", code=2).stderr
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(VlmkitError, match="no chat template"):
        load_chat_model(str(copied))
    (copied / "model.safetensors").unlink()
    assert b"is incomplete: model.safetensors is missing" in warm("caption", "-m", copied, picture, code=2).stderr
