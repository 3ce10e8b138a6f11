"""Boxes: each family's documented form, in pixels of the original picture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.models.boxes import FORMATS, GEMINI, BoxFormat, find_boxes, find_hosted_boxes, hosted_format
from vlmkit.models.types import RequestError

CAT = {"label": "cat", "box": [80.0, 120.0, 560.0, 360.0]}  # of a picture of 640 x 480
FENCED = '```json\n[\n  {"bbox_2d": %s, "label": "cat"}\n]\n```'
SAID = {
    "paligemma": (FORMATS["paligemma"], "<loc0256><loc0128><loc0768><loc0896> cat"),
    "qwen2_vl": (
        FORMATS["qwen2_vl"],
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(125,250),(875,750)<|box_end|>",
    ),
    "qwen2_vl, without its marks": (FORMATS["qwen2_vl"], "cat(125,250),(875,750)"),
    "qwen2_5_vl": (FORMATS["qwen2_5_vl"], FENCED % [56, 84, 392, 252]),  # seen as 448 x 336
    "qwen3_vl": (FORMATS["qwen3_vl"], FENCED % [125, 250, 875, 750]),
    "gemini": (GEMINI, '[{"box_2d": [250, 125, 750, 875], "label": "cat"}]'),
}


@pytest.mark.parametrize("family", SAID)
def test_each_form(family: str) -> None:
    form, text = SAID[family]
    assert find_boxes(text, form, (640, 480), (448, 336)) == ([CAT], "")


def test_several_of_them() -> None:
    text = "<loc0000><loc0000><loc0512><loc0512> cat ; <loc0512><loc0512><loc1023><loc1023> dog\n"
    found = find_boxes(text, FORMATS["paligemma"], (1024, 1024)).boxes
    assert found == [
        {"label": "cat", "box": [0.0, 0.0, 512.0, 512.0]},
        {"label": "dog", "box": [512.0, 512.0, 1023.0, 1023.0]},
    ]
    text = "the cats(0,0),(500,500)(500,500),(1000,1000), a dog(1,2),(3,4)"
    assert [found["label"] for found in find_boxes(text, FORMATS["qwen2_vl"], (10, 10)).boxes] == [
        "the cats",
        "the cats",
        "a dog",
    ]


def test_of_a_reply_cut_short_the_whole_ones() -> None:
    text = '[{"bbox_2d": [0, 0, 500, 500], "label": "cat"}, {"bbox_2d": [1, 2, 3'
    assert find_boxes(text, FORMATS["qwen3_vl"], (100, 50)).boxes == [{"label": "cat", "box": [0.0, 0.0, 50.0, 25.0]}]


def test_what_is_no_box() -> None:
    for text in (
        "",
        "I see a cat.",
        "[1, 2]",
        '{"bbox_2d": [1, 2, 3], "label": "cat"}',
        '{"bbox_2d": "x"}',
        "<loc0001>",
    ):
        for form, _ in SAID.values():
            assert find_boxes(text, form, (10, 10)).boxes == []


@given(st.sampled_from(list(SAID)), st.text(max_size=80), st.integers(1, 5000), st.integers(1, 5000))
def test_any_text_gives_boxes_inside(family: str, text: str, width: int, height: int) -> None:
    form, said = SAID[family]
    for found in find_boxes(text + said + text, form, (width, height), (448, 336)).boxes:
        x0, y0, x1, y1 = found["box"]
        assert 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height


def test_what_lies_outside_is_counted() -> None:
    form: BoxFormat = FORMATS["qwen3_vl"]
    whole = [{"label": "", "box": [10.0, 0.0, 90.0, 100.0]}]
    assert find_boxes('{"bbox_2d": [900, 1001, 100, -1]}', form, (100, 100)) == (whole, "")  # within rounding
    found = find_boxes('{"bbox_2d": [900, 1200, 100, -5]} {"bbox_2d": [100, 0, 900, 1000]}', form, (100, 100))
    assert found == (whole * 2, "1 of 2 boxes cut off at the edge of the picture")
    for text in ("[5, 5, 5, 9]", "[1100, 5, 1200, 9]", "[1, 2, 3]"):
        found = find_boxes(f'{{"bbox_2d": {text}}}', form, (100, 100))
        assert found == ([], "1 of 1 boxes outside the picture, empty or malformed, left out")


@pytest.mark.parametrize(
    ("numbers", "box", "note"),
    [
        ([125, 250, 875, 750], [250, 250, 1750, 750], ""),
        ([150, 150, 1050, 450], [250, 250, 1750, 750], "pixels of the picture sent, 1200 x 600"),
        ([250, 250, 1750, 750], [250, 250, 1750, 750], "pixels of the original, 2000 x 1000"),
        ([0.125, 0.25, 0.875, 0.75], [250, 250, 1750, 750], "fractions"),
    ],
)
def test_the_values_say_what_they_are_where_the_family_is_not_known(numbers: list, box: list, note: str) -> None:
    found = find_hosted_boxes(FENCED % numbers, hosted_format("some-model"), (2000, 1000), (1200, 600))
    assert [one["box"] for one in found.boxes] == [box]
    assert note in found.note and bool(note) == bool(found.note)


@pytest.mark.parametrize("text", [FENCED % [10, 10, 5000, 20], '{"rect": [10, 20, 30, 40]}', "at 10 20, to 30 40"])
def test_boxes_that_fit_nothing_fail(text: str) -> None:
    with pytest.raises(RequestError):
        find_hosted_boxes(text, hosted_format("some-model"), (2000, 1000), (1200, 600))


@pytest.mark.parametrize(
    ("name", "family"),
    [("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl"), ("qwen2.5vl:7b", "qwen2_5_vl"), ("qwen3-vl-plus", "qwen3_vl")],
)
def test_the_family_of_a_hosted_model_is_in_its_name(name: str, family: str) -> None:
    assert hosted_format(name) is FORMATS[family]
    found = find_hosted_boxes(FENCED % [100, 100, 200, 200], hosted_format(name), (2000, 1000), (1000, 500))
    assert found.boxes[0]["box"] == ([200, 200, 400, 400] if family == "qwen2_5_vl" else [200, 100, 400, 200])


@pytest.mark.parametrize(
    "text",
    [
        "<ref>cat</ref><box>(125,250),(875,750)</box>",
        "<ref>cat</ref><box>[[125, 250, 875, 750]]</box>",
        "cat (125, 250), (875, 750)",
        '{"objects": [{"bbox": [125, 250, 875, 750], "name": "cat"}]}',
        '{"label": "cat", "box": {"x1": 125, "y1": 250, "x2": 875, "y2": 750}}',
        '{"label": "cat", "x": 125, "y": 250, "width": 750, "height": 500}',
        '{"label": "cat", "polygon": [[125, 300], [500, 250], [875, 750]]}',
        '{"label": "cat", "points": [125, 300, 500, 250, 875, 750]}',
    ],
)
def test_other_forms_of_a_box(text: str) -> None:
    assert find_hosted_boxes(text, hosted_format("some-model"), (640, 480), (640, 480)) == ([CAT], "")


def test_lists_of_boxes() -> None:
    one, other = [80.0, 120.0, 560.0, 360.0], [0.0, 0.0, 64.0, 48.0]
    for text in ("[[125, 250, 875, 750], [0, 0, 100, 100]]", '{"bbox_2d": [[125, 250, 875, 750], [0, 0, 100, 100]]}'):
        found = find_hosted_boxes(text, hosted_format("some-model"), (640, 480), (640, 480)).boxes
        assert [box["box"] for box in found] == [one, other]
