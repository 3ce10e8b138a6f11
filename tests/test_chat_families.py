"""Models of transformers by family, each against the call that its documentation shows; random weights."""

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from chat_families import FAMILIES
from helpers import jsonl, noise, records
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmkit.models.load import load_chat_model
from vlmkit.models.types import Answer, Request, RequestError, Sampling

pytestmark = pytest.mark.slow

QUESTIONS = ["what color is the car?", "the red dog", "is it red?", "a man"]
SIZES = [(100, 80), (60, 90), (64, 64), (200, 100)]
MOST = 10  # tokens


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@cache
def made(place: Path, family: str) -> Path:
    return FAMILIES.get(family, families.paligemma)(place / family)


def pictures() -> list[Image.Image]:
    return [Image.fromarray(array).resize(size) for array, size in zip(noise(len(SIZES)), SIZES, strict=True)]


def _text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def documented(folder: Path, shown: list[Image.Image], question: str | list[dict[str, str]]) -> tuple[str, float]:
    """apply_chat_template, processor(text, images), generate, decode what is new; a list is all parts of the turn.

    Beside the text the mean probability of its tokens, by compute_transition_scores.
    """
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    content = question if isinstance(question, list) else [*[{"type": "image"}] * len(shown), _text(question)]
    said = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt], images=shown or None, return_tensors="pt")
    how = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    found = model.generate(**inputs, max_new_tokens=MOST, **how)
    scores = model.compute_transition_scores(found.sequences, found.logits, normalize_logits=True)
    text = processor.decode(found.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return text, scores.mean().exp().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_documented_call(place: Path, family: str) -> None:
    """In one batch: questions of several lengths about one, two and no pictures of several sizes."""
    one, two, three, four = pictures()
    shown = [[one], [two, three], [], [four]]
    model = load_chat_model(str(made(place, family)))
    requests = [
        Request(question, [model.preprocess(picture) for picture in some])
        for question, some in zip(QUESTIONS, shown, strict=True)
    ]
    answers = model.answer(requests, Sampling(MOST))
    expected = [documented(made(place, family), some, q) for q, some in zip(QUESTIONS, shown, strict=True)]
    assert [answer.text for answer in answers if isinstance(answer, Answer)] == [text for text, _ in expected]
    sure = [answer.confidence for answer in answers if isinstance(answer, Answer)]
    assert sure == pytest.approx([probability for _, probability in expected], abs=0.0051)
    assert len(set(expected)) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_of_several_questions_is_seen_once(place: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question about two pictures, the others about one of them; a copy is the same picture."""
    model: Any = load_chat_model(str(made(place, family)))
    one, two, *_ = (model.preprocess(picture) for picture in pictures())
    shown = [[one, two], [two, one], [one.copy(), one]]
    requests = [Request(question, some) for question, some in zip(QUESTIONS[1:], shown, strict=True)]
    expected = [model.answer([request], Sampling(MOST, beams=2))[0] for request in requests]
    base, looks = model._model.base_model, []
    look = base.get_image_features

    def counted(pixel_values: torch.Tensor, *rest: Any, **named: Any) -> Any:
        looks.append(pixel_values)
        return look(pixel_values, *rest, **named)

    counted.__signature__ = inspect.signature(look)  # type: ignore[attr-defined]
    monkeypatch.setattr(base, "get_image_features", counted)
    assert model.answer(requests, Sampling(MOST, beams=2)) == expected and len(looks) == 2
    looks.clear()
    assert model.answer(requests[:1], Sampling(MOST, beams=2)) == expected[:1] and len(looks) == 1


def test_a_batch_that_does_not_fit_is_halved(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has memory for two requests; the answers are those of a device that has more."""
    model: Any = load_chat_model(str(made(place, "qwen2_vl")))
    requests = [Request(question, [model.preprocess(pictures()[0])]) for question in [*QUESTIONS, "is it?"]]
    expected = model.answer(requests, Sampling(MOST))
    whole, most = model._model.generate, 2

    def narrow(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError("too many")
        return whole(**inputs)

    monkeypatch.setattr(model._model, "generate", narrow)
    assert model.answer(requests, Sampling(MOST)) == expected and model.batch.size <= 2
    most = 0
    refused = model.answer(requests[:2], Sampling(MOST))
    refused.append(model.stream(requests[0], Sampling(MOST), lambda piece: None))
    assert all(isinstance(one, RequestError) and "does not fit into the memory of cpu" in str(one) for one in refused)


REPLIES = {
    "qwen2_vl": "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(250,500),(750,1000)<|box_end|><|im_end|>",
    "qwen2_5_vl": '```json\n[{"bbox_2d": [%d, %d, %d, %d], "label": "a dog"}]\n```<|im_end|>',
    "qwen3_vl": '[{"bbox_2d": [250, 500, 750, 1000], "label": "a dog"}]<|im_end|>',
}


@pytest.mark.parametrize("family", REPLIES)
def test_boxes_come_in_pixels_of_the_original(place: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply is what such a model writes of the middle of the lower half; Qwen2.5-VL in pixels of what it saw."""
    model: Any = load_chat_model(str(made(place, family)))
    picture = pictures()[3].resize((200, 120))
    request = Request("dogs", [picture], task="boxes")
    grid = model._processor.image_processor(picture, return_tensors="pt")["image_grid_thw"][0].tolist()
    height, width = (14 * side for side in grid[1:])
    assert (width, height) != picture.size
    seen = (width / 4, height / 2, width * 3 / 4, height)
    reply = REPLIES[family] % seen if "%" in REPLIES[family] else REPLIES[family]
    tokens = model._tokenizer(reply, add_special_tokens=False)["input_ids"]

    def generate(**inputs: Any) -> torch.Tensor:
        return torch.cat([inputs["input_ids"], torch.tensor([tokens])], 1)

    monkeypatch.setattr(model._model, "generate", generate)
    (answer,) = model.answer([request], Sampling(MOST))
    assert answer.text == "a dog" and answer.finish == "stop"
    (box,) = answer.boxes
    assert box["label"] == "a dog" and box["box"] == pytest.approx([50, 60, 150, 120], abs=1)


@pytest.mark.parametrize("family", [*REPLIES])
def test_attention_maps_are_of_the_picture_in_its_place(place: Path, family: str) -> None:
    """Each token of the answer is one more than the processor knew kinds of."""
    model: Any = load_chat_model(str(made(place, family)))
    for prompt in ("what color is it?", "is <image> red?"):
        request = Request(prompt, [model.preprocess(pictures()[0])])
        found = model.attention(request, "a red car")
        assert len(found.words) > 0 and all(abs(attention.sum() - 1) < 1e-3 for _, attention in found.words)


def test_pictures_stand_where_their_marks_are(place: Path) -> None:
    """As in the documented call with parts in that order."""
    folder = made(place, "qwen2_vl")
    shown = pictures()[:2]
    model = load_chat_model(str(folder))
    (answer,) = model.answer([Request("from <image> to <image>, what?", shown)], Sampling(MOST))
    here = {"type": "image"}
    assert isinstance(answer, Answer)
    assert answer.text == documented(folder, shown, [_text("from"), here, _text("to"), here, _text(", what?")])[0]
    assert answer.text != documented(folder, shown, "from to , what?")[0]


PREFIXES = ["answer en what color is the car?", "caption en", "ocr", "detect a car", "detect man ; boat"]
REQUESTS = [
    ("what color is the car?", "answer"),
    ("caption en", "answer"),
    ("", "ocr"),
    ("a car", "boxes"),
    ("detect man ; boat", "answer"),
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of its processor
def test_paligemma_is_asked_by_its_prefixes(place: Path) -> None:
    """processor(text, images), generate and decode what is new; boxes are y0, x0, y1, x1 over 1024."""
    folder = made(place, "paligemma")
    model = load_chat_model(str(folder))
    library, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    boxes = 0
    for picture in pictures():
        shown = model.preprocess(picture)
        answers = model.answer([Request(text, [shown], task=task) for text, task in REQUESTS], Sampling(30))
        for prefix, answer in zip(PREFIXES, answers, strict=True):
            assert isinstance(answer, Answer)
            inputs = processor(text=f"<image>{prefix}", images=picture, return_tensors="pt")
            found = library.generate(**inputs, max_new_tokens=30, do_sample=False)
            new = found[0, inputs["input_ids"].shape[1] :]
            if answer.boxes is None:
                assert answer.text == processor.decode(new, skip_special_tokens=True).strip()
                continue
            assert prefix.startswith("detect ")
            expected = []
            for four in re.findall(r"((?:<loc\d{4}>){4})", processor.decode(new, skip_special_tokens=False)):
                y0, x0, y1, x1 = (int(number) / 1024 for number in re.findall(r"\d{4}", four))
                left, right, top, bottom = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
                if left < right and top < bottom:
                    wide, high = picture.size
                    expected.append([left * wide, top * high, right * wide, bottom * high])
            assert [box["box"] for box in answer.boxes] == [pytest.approx(box, abs=0.06) for box in expected]
            boxes += len(expected)
    assert boxes > 3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_paligemma_refuses_what_it_cannot(place: Path) -> None:
    model = load_chat_model(str(made(place, "paligemma")))
    one, two, *_ = (model.preprocess(picture) for picture in pictures())
    asked = [Request("a?", [one, two]), Request("a?"), Request("", [one]), Request("a?", [one], start="it is")]
    asked += [Request("a?", [one], system="be brief"), Request("a dog " * 100, [one])]
    most = next(n for n in range(200) if "more than" in str(model.answer([Request("?" * n, [one])], Sampling(1))[0]))
    (longest,) = model.answer([Request("?" * (most - 1), [one])], Sampling(MOST))
    assert isinstance(longest, Answer) and longest.tokens == 1, "one place is left"
    reasons = [
        "one picture at a time",
        "no picture",
        "is empty",
        "cannot continue a given beginning",
        "support a system text",
    ]
    answers = model.answer(asked, Sampling(MOST))
    for answer, reason in zip(answers, [*reasons, "more than the 128"], strict=True):
        assert isinstance(answer, RequestError) and reason in str(answer)


def test_the_command_asks_a_family_of_its_own(place: Path, warm, tmp_path: Path) -> None:
    for number, picture in enumerate(pictures()[:2]):
        picture.save(tmp_path / f"{number}.png")
    rows = jsonl(*({"image": f"{number}.png", "question": "is it red?"} for number in range(2)))
    found = records(warm("ask", "-m", made(place, "smolvlm"), "--max-tokens", MOST, stdin=rows).stdout)
    expected = [documented(made(place, "smolvlm"), [picture], "is it red?") for picture in pictures()[:2]]
    assert [row["answer"] for row in found] == [" ".join(text.split()) for text, _ in expected]
    assert all(0 <= row["confidence"] <= 1 for row in found)
