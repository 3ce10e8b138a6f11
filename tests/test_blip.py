"""BLIP, BLIP-2 and InstructBLIP against the calls that their documentation shows; random weights."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import families
import pytest
from helpers import jsonl, noise, records
from PIL import Image
from transformers import (
    AutoProcessor,
    Blip2ForConditionalGeneration,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    InstructBlipForConditionalGeneration,
)

from vlmkit.errors import VlmkitError
from vlmkit.models.load import load_chat_model
from vlmkit.models.resolve import resolve
from vlmkit.models.types import Answer, Request, RequestError, Sampling, UnsuitableModel
from vlmkit.serve.errors import explained

pytestmark = pytest.mark.slow

QUESTIONS = ["what color is the car?", "red?", "how many people are there", "is it"]
STARTS = ["", "the red dog", "a man", ""]
Made = Callable[[str], Path]
MAKERS = {
    "blip": families.blip,
    "vqa": lambda folder: families.blip(folder, BlipForQuestionAnswering),
    "opt": lambda folder: families.blip2(folder, families.opt()),
    "t5": lambda folder: families.blip2(folder, families.t5(), 2),
    "instruct-opt": lambda folder: families.instructblip(folder, families.opt()),
    "instruct-t5": lambda folder: families.instructblip(folder, families.t5(), 2),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folder of a model of MAKERS, made when first asked for."""
    return cache(lambda name: MAKERS[name](tmp_path_factory.mktemp("models") / name))


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    """A copy of one of them, to be changed."""
    return lambda name: Path(shutil.copytree(made(name), tmp_path / name))


@cache
def library(kind: Any, folder: Path) -> tuple[Any, Any]:
    return kind.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def documented(kind: Any, folder: Path, picture: Image.Image, text: str | None, beams: int = 1) -> str:
    """processor(image, text), generate, decode; without what it repeats of the text."""
    model, processor = library(kind, folder)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=beams, renormalize_logits=beams > 1)
    return processor.decode(made[0], skip_special_tokens=True).removeprefix(text or "").strip()


def pictures(count: int = 4) -> list[Image.Image]:
    """Some wide, some high."""
    return [Image.fromarray(array).resize((90 + 40 * i, 150 - 30 * i)) for i, array in enumerate(noise(count))]


def said(folder: Path, requests: list[Request], beams: int = 1) -> list[str]:
    """What a model answers to all at once, and the same one by one."""
    model = load_chat_model(str(folder))
    shown = [
        Request(one.prompt, [model.preprocess(picture) for picture in one.pictures], start=one.start)
        for one in requests
    ]
    together = model.answer(shown, Sampling(8, beams=beams))
    assert together == [model.answer([one], Sampling(8, beams=beams))[0] for one in shown]
    for answer in together:
        assert isinstance(answer, Answer)
        assert answer.prompt_tokens > 0 or not requests[0].prompt
        assert answer.tokens == 8 if answer.finish == "length" else answer.tokens <= 8
    return [answer.text for answer in together]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["blip", "opt", "t5"])
def test_captions_are_those_of_the_documented_call(made: Made, name: str, beams: int) -> None:
    """Free ones and guided ones in one batch; the beginning is part of the caption."""
    kind = BlipForConditionalGeneration if name == "blip" else Blip2ForConditionalGeneration
    found = said(made(name), [Request("", [p], start=s) for p, s in zip(pictures(), STARTS, strict=True)], beams)
    expected = [documented(kind, made(name), p, s or None, beams) for p, s in zip(pictures(), STARTS, strict=True)]
    assert all(text.startswith(start) for text, start in zip(found, STARTS, strict=True))
    assert [text.removeprefix(start).strip() for text, start in zip(found, STARTS, strict=True)] == expected
    assert len(set(found)) > 2


@pytest.mark.parametrize("name", ["vqa", "opt", "t5", "instruct-opt", "instruct-t5"])
def test_answers_are_those_of_the_documented_call(made: Made, name: str) -> None:
    """Questions of several lengths in one batch: BLIP-2 has a form for them."""
    kinds = {"vqa": BlipForQuestionAnswering, "instruct": InstructBlipForConditionalGeneration}
    kind = kinds.get(name.split("-")[0], Blip2ForConditionalGeneration)
    form = "Question: {} Answer:" if kind is Blip2ForConditionalGeneration else "{}"
    found = said(made(name), [Request(q, [p]) for p, q in zip(pictures(), QUESTIONS, strict=True)])
    asked = [form.format(question) for question in QUESTIONS]
    assert found == [documented(kind, made(name), p, text) for p, text in zip(pictures(), asked, strict=True)]
    assert len(set(found)) > 2
    if kind is Blip2ForConditionalGeneration:
        assert said(made(name), [Request(asked[0], pictures(1))]) == found[:1]


def test_marks_of_the_text_are_no_pictures(made: Made) -> None:
    (picture,) = pictures(1)
    for name, marked in {"opt": "<image>red</s>?", "vqa": "[SEP]red [CLS] ?", "instruct-t5": "red<image> ?"}.items():
        plain = {"opt": "red ?", "vqa": "red ?", "instruct-t5": "red  ?"}[name]
        assert said(made(name), [Request(marked, [picture])]) == said(made(name), [Request(plain, [picture])])


def test_a_captioner_that_is_asked_is_the_wrong_model_of_a_service(made: Made) -> None:
    """A client can do something about it, unlike about a model that cannot be opened."""
    model = load_chat_model(str(made("blip")))
    with pytest.raises(UnsuitableModel) as raised:
        model.answer([Request("red?", [model.preprocess(pictures(1)[0])])], Sampling(4))
    assert explained(raised.value).status == 400 and explained(VlmkitError("a", "b")).status == 503


def test_what_they_do_not_take_is_refused_alone(made: Made) -> None:
    one, two = pictures(2)
    for name in ("vqa", "opt", "instruct-opt"):
        model = load_chat_model(str(made(name)))
        seen = [model.preprocess(one), model.preprocess(two)]
        requests = [Request("red?", seen), Request("red?"), Request("red?", seen[:1]), Request("red " * 90, seen[:1])]
        requests.append(Request("red?", seen[:1], system="be kind"))
        several, none, right, long, system = model.answer(requests, Sampling(4))
        if name != "opt":  # which captions then
            mark = "[SEP]" if name == "vqa" else "<image>"
            (empty,) = model.answer([Request(mark, seen[:1])], Sampling(4))
            assert isinstance(empty, RequestError) and "is empty" in str(empty)
        refused = [str(each) for each in (several, none, long, system) if isinstance(each, RequestError)]
        assert isinstance(right, Answer) and len(refused) == 4
        assert "2 pictures" in refused[0] and "no picture" in refused[1] and "--system" in refused[3]
        assert "tokens" in refused[2] and "more than" in refused[2]


def test_replies_end_where_the_model_has_no_more_places(made: Made) -> None:
    (picture,) = pictures(1)
    for name, places in {"blip": 32, "vqa": 32, "opt": 64, "t5": 101}.items():
        model = load_chat_model(str(made(name)))
        request = Request("" if name == "blip" else "is it", [model.preprocess(picture)])
        (answer,) = model.answer([request], Sampling(100))
        assert isinstance(answer, Answer) and answer.tokens < places


def test_a_captioner_and_one_for_questions_are_reported_apart(made: Made, warm, tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(3)]
    for name, picture in zip(names, pictures(3), strict=True):
        picture.save(tmp_path / name)
    rows = records(warm("caption", "-m", made("blip"), *names, "--prompt", "the red", "--max-tokens", 8).stdout)
    assert [row["caption"].lower().startswith("the red") for row in rows] == [True] * 3
    assert rows[0]["caption_model"].startswith(f"{made('blip')}@")
    captioner = load_chat_model(str(made("blip")))
    with pytest.raises(VlmkitError, match="does not answer questions: use Salesforce/blip-vqa-base"):
        captioner.answer([Request("what is it?", [captioner.preprocess(pictures(1)[0])])], Sampling(8))
    done = warm("caption", "-m", made("vqa"), names[0], "-o", "out.txt", code=2)
    assert done.stderr.count(b"\n") == 1 and b"use Salesforce/blip-image-captioning-base" in done.stderr
    assert not (tmp_path / "out.txt").exists()
    asked = jsonl({"image": names[0], "question": "red?"}, {"images": names[:2], "question": "red?"})
    done = warm("ask", "-m", made("vqa"), "--errors", "bad.jsonl", stdin=asked, code=3)
    assert [row["image"] for row in records(done.stdout)] == [str(tmp_path / names[0])]
    assert "one picture at a time" in records((tmp_path / "bad.jsonl").read_bytes())[0]["error"]


def changed(folder: Path, file: str, **settings: Any) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | settings))


@pytest.mark.parametrize(
    ("name", "settings", "reported"),
    [
        ("blip", {"architectures": ["BlipForImageTextRetrieval"]}, "does not generate text"),
        ("blip", {"architectures": ["BlipForQuestionAnswering"]}, "lacks weights of its BlipForQuestionAnswering"),
        ("blip", {"architectures": None}, "does not name an architecture"),
        ("opt", {"architectures": ["Blip2ForImageTextRetrieval"]}, "does not generate text"),
        ("opt", {"image_token_index": None}, "without image tokens"),
        ("opt", {"num_query_tokens": 5}, "cannot be opened"),
    ],
)
def test_folders_that_are_not_whole_are_reported(
    copied: Made, name: str, settings: dict[str, Any], reported: str
) -> None:
    folder = copied(name)
    changed(folder, "config.json", **settings)
    with pytest.raises(VlmkitError, match=reported) as caught:
        load_chat_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "processor_config.json"])
def test_damaged_files_are_reported_in_one_line(copied: Made, file: str) -> None:
    folder = copied("vqa")
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(VlmkitError, match="cannot be opened") as caught:
        load_chat_model(str(folder))
    assert "\n" not in str(caught.value)


def test_the_tokenizer_of_the_q_former_is_part_of_the_model(copied: Made, environment, vlmkit, tmp_path: Path) -> None:
    folder = copied("instruct-opt")
    before = resolve(str(folder), "chat").fingerprint()
    changed(folder, "qformer_tokenizer/tokenizer_config.json", do_lower_case=False)
    after = resolve(str(folder), "chat").fingerprint()
    assert before != after
    place = tmp_path / "hf/hub/models--toys--instructblip"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    pictures(1)[0].save(tmp_path / "a.png")
    (row,) = records(vlmkit("ask", "-m", "toys/instructblip", "a.png", "red?", "--json", "--max-tokens", 3).stdout)
    assert row["answer_model"] == f"toys/instructblip@{after}"
