"""Florence-2 against the call that its documentation shows; random weights, most of whose words are places."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import families
import pytest
from helpers import jsonl, noise, records
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from vlmkit.errors import VlmkitError
from vlmkit.models.load import load_chat_model
from vlmkit.models.types import Answer, Request, RequestError, Sampling

pytestmark = pytest.mark.slow

MOST = 30  # tokens
CAPTIONS = ["<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>"]
TEXTS = [*CAPTIONS, "<OCR>", "<REGION_TO_CATEGORY> <loc_52><loc_332><loc_932><loc_774>"]
BOXES = ["<OD>", "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>", "<CAPTION_TO_PHRASE_GROUNDING> the red dog"]
BOXES += ["<OPEN_VOCABULARY_DETECTION> a blue boat"]
OUTLINES = ["<OCR_WITH_REGION>", "<REFERRING_EXPRESSION_SEGMENTATION> the red dog"]


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.florence(tmp_path_factory.mktemp("models") / "florence")


@cache
def library(folder: Path) -> tuple[Any, Any]:
    return Florence2ForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def picture(number: int = 0) -> Image.Image:
    """Of a size that is not the model's."""
    return Image.fromarray(noise(number + 1)[number]).resize((640, 480))


def documented(folder: Path, image: Image.Image, prompt: str, beams: int = 1) -> Any:
    """processor(text, images), generate, decode, and what post_process_generation makes of it; a caption as it is.

    One token more than is asked for: the last is an end mark that the library forces.
    """
    model, processor = library(folder)
    inputs = processor(text=prompt, images=image, return_tensors="pt")
    how = {"num_beams": beams, "do_sample": False, "renormalize_logits": beams > 1}
    made = model.generate(**inputs, max_new_tokens=MOST + 1, **how)
    if prompt in TEXTS:
        return processor.batch_decode(made, skip_special_tokens=True)[0].strip()
    (text,) = processor.batch_decode(made, skip_special_tokens=False)
    task = prompt.split(" ")[0]
    return processor.post_process_generation(text, task=task, image_size=image.size)[task]


def answered(folder: Path, prompts: list[str], beams: int = 1, **how: Any) -> list[Answer]:
    """What the model answers about picture 0 to all at once, and the same one by one."""
    model = load_chat_model(str(folder))
    requests = [Request(prompt, [model.preprocess(picture())], **how) for prompt in prompts]
    together = model.answer(requests, Sampling(MOST, beams=beams))
    assert together == [model.answer([one], Sampling(MOST, beams=beams))[0] for one in requests]
    assert all(isinstance(answer, Answer) and answer.prompt_tokens for answer in together), together
    return [answer for answer in together if isinstance(answer, Answer)]


def test_texts_are_those_of_the_documented_call(florence: Path) -> None:
    found = answered(florence, TEXTS)
    assert [answer.text for answer in found] == [documented(florence, picture(), prompt) for prompt in TEXTS]
    assert {answer.boxes for answer in found} == {None} and len({answer.text for answer in found}) > 2
    assert {(answer.finish, answer.tokens) for answer in found} == {("length", MOST)}
    (beams,) = answered(florence, ["<OCR>"], beams=3)
    assert beams.text == documented(florence, picture(), "<OCR>", beams=3)


def test_boxes_are_those_of_the_documented_call(florence: Path) -> None:
    for prompt, answer in zip(BOXES, answered(florence, BOXES), strict=True):
        expected = documented(florence, picture(), prompt)
        asked = prompt.partition("> ")[2] or "region"
        labels = [label or asked for label in expected.get("bboxes_labels", expected.get("labels"))]
        assert answer.boxes and [(box["label"], box["box"]) for box in answer.boxes] == list(
            zip(labels, expected["bboxes"], strict=True)
        )
        assert answer.text == ", ".join(labels)


def test_outlines_are_those_of_the_documented_call(florence: Path) -> None:
    quads, polygons = answered(florence, OUTLINES)
    expected = documented(florence, picture(), OUTLINES[0])
    assert quads.boxes and [box["polygon"] for box in quads.boxes] == expected["quad_boxes"]
    assert [box["label"] for box in quads.boxes] == expected["labels"]
    expected = documented(florence, picture(), OUTLINES[1])
    outlines = [polygon for group in expected["polygons"] for polygon in group if len(polygon) >= 6]
    assert polygons.boxes and [box["polygon"] for box in polygons.boxes] == outlines
    assert {box["label"] for box in polygons.boxes} == {"the red dog"}
    for box in polygons.boxes:
        across, down = box["polygon"][::2], box["polygon"][1::2]
        assert box["box"] == [min(across), min(down), max(across), max(down)]


def test_a_caption_goes_on_from_its_beginning(florence: Path) -> None:
    """As `generate` does from decoder_input_ids."""
    model, processor = library(florence)
    begun = processor.tokenizer("the red dog", add_special_tokens=False, return_tensors="pt").input_ids
    inputs = processor(text="<CAPTION>", images=picture(), return_tensors="pt")
    before = begun.new_tensor([[model.generation_config.decoder_start_token_id, 0]])
    made = model.generate(
        **inputs,
        decoder_input_ids=begun.new_tensor([*before.tolist()[0], *begun.tolist()[0]])[None],
        max_new_tokens=MOST + 1,
        do_sample=False,
    )
    (answer,) = answered(florence, ["<CAPTION>"], start="the red dog")
    assert answer.text == processor.batch_decode(made, skip_special_tokens=True)[0].strip()
    assert answer.text.startswith("the red dog") and answer.tokens == MOST


def test_what_is_no_task_is_refused_and_tasks_are_named(florence: Path) -> None:
    model = load_chat_model(str(florence))
    seen = [model.preprocess(picture())]
    prompts = ["what is it?", "<od>", "<OD> a dog", "<CAPTION_TO_PHRASE_GROUNDING>", "<OCR>", "<CAPTION>"]
    requests = [Request(prompt, seen) for prompt in prompts] + [Request("<OD>"), Request("<OD>", seen * 2)]
    requests += [Request("<CAPTION_TO_PHRASE_GROUNDING> " + "red " * 90, seen)]
    requests += [Request("<CAPTION>", seen, start="red " * 100)]
    answers = model.answer(requests, Sampling(4))
    refused = [str(answer) if isinstance(answer, RequestError) else "" for answer in answers]
    assert "<OD>" in refused[0] and "<CAPTION_TO_PHRASE_GROUNDING>" in refused[0] and refused[1] == refused[0]
    assert "takes no text" in refused[2] and "requires a text" in refused[3] and refused[4:6] == ["", ""]
    assert "no picture" in refused[6] and "2 pictures" in refused[7] and "more than the 96" in refused[8]
    assert "more than the 96" in refused[9]
    marked = "<CAPTION_TO_PHRASE_GROUNDING> <image>the <OD>dog</s>"
    plain = "<CAPTION_TO_PHRASE_GROUNDING> the  dog"
    assert [a.boxes for a in answered(florence, [marked])] == [a.boxes for a in answered(florence, [plain])]


def test_records_get_boxes_in_pixels_of_the_upright_original(florence: Path, warm, tmp_path: Path) -> None:
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    asked = jsonl({"image": "a.png", "question": "<OD>"}, {"image": "a.png", "question": "what is it?"})
    how = ("-m", florence, "--max-tokens", MOST, "--errors", "bad.jsonl")
    (row,) = records(warm("ask", *how, stdin=asked, code=3).stdout)
    expected = documented(florence, upright, "<OD>")
    assert expected["bboxes"] and [box["box"] for box in row["boxes"]] == expected["bboxes"]
    assert row["answer"] == " ".join(", ".join(expected["labels"]).split())
    (bad,) = records((tmp_path / "bad.jsonl").read_bytes())
    assert "does not answer free questions" in bad["error"]


def test_captions_of_each_length_are_tasks(florence: Path) -> None:
    captions = load_chat_model(str(florence)).captions
    assert [captions[length].prompt for length in ("short", "normal", "long")] == CAPTIONS


def test_a_form_that_runs_code_is_reported(florence: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(florence, tmp_path / "own"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"auto_map": {"AutoConfig": "evil.Evil"},', 1))
    (folder / "evil.py").write_text("raise SystemExit('owned')\n")
    with pytest.raises(VlmkitError, match="requires custom code, which vlmkit does not run: name one without"):
        load_chat_model(str(folder))
