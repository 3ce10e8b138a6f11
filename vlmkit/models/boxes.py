"""Boxes in what a model says, in whatever form its family has, as pixels of the original picture."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from vlmkit.models.types import Box

EVERYTHING = "every object"
Size = tuple[int, int]  # width, height
Labelled = tuple[str, Sequence[float]]  # a label and four numbers as the model wrote them

LOCATIONS = re.compile(r"((?:<loc\d{4}>){4})([^<;]*)")
LOCATION = re.compile(r"<loc(\d{4})>")
NAMED = re.compile(r"([^()]*?)((?:\(\d+, ?\d+\), ?\(\d+, ?\d+\)[^()\w]*)+)")
CORNERS = re.compile(r"\((\d+), ?(\d+)\), ?\((\d+), ?(\d+)\)")
DETECTED = re.compile(r"<\|ref\|>(.*?)<\|/ref\|>\s*<\|det\|>(.*?)<\|/det\|>", re.DOTALL)
BRACKETS = re.compile(r"\[([^\[\]]*)\]")
OBJECT = re.compile(r"\{[^{}]*\}")
MARK = re.compile(r"<\|[^|]*\|>")
SIDES = ("x_min", "y_min", "x_max", "y_max")


class Form(NamedTuple):
    """How a family writes boxes: what it is asked, how its reply is read, what its numbers are.

    `scale` is what stands for the whole width and height, None where they are pixels of the picture as the model saw
    it; `rows_first` where each corner is y, x.
    """

    prompt: str
    read: Callable[[str], Iterator[Labelled]]
    scale: float | None
    rows_first: bool = False
    everything: str = EVERYTHING

    def asked(self, what: str) -> str:
        """The prompt for the boxes of `what`."""
        return self.prompt.format(what=self.everything if what == EVERYTHING else what)


def boxes(text: str, form: Form, original: Size, seen: Size | None = None) -> list[Box]:
    """`{label, box: [x0, y0, x1, y1]}` for each box in `text`, in pixels of the picture of size `original`.

    `seen` is the size at which the model saw it, for forms whose numbers are pixels. What lies outside is cut off, and
    boxes of which nothing is left are dropped.
    """
    width, height = original
    across, down = (form.scale, form.scale) if form.scale else seen or original
    found = []
    for label, numbers in form.read(text):
        one, two, three, four = numbers
        x0, y0, x1, y1 = (two, one, four, three) if form.rows_first else (one, two, three, four)
        xs = sorted(min(max(x * width / across, 0.0), float(width)) for x in (x0, x1))
        ys = sorted(min(max(y * height / down, 0.0), float(height)) for y in (y0, y1))
        if xs[0] < xs[1] and ys[0] < ys[1]:
            box = [round(value, 1) for value in (xs[0], ys[0], xs[1], ys[1])]
            found.append(Box(label=MARK.sub("", label).strip(" \n\t.,:;"), box=box))
    return found


def _locations(text: str) -> Iterator[Labelled]:
    """`<loc0256><loc0128><loc0768><loc0896> cat ; …` (PaliGemma: Beyer and others, 2024)."""
    for tokens, label in LOCATIONS.findall(text):
        yield label, list(map(float, LOCATION.findall(tokens)))


def _marks(text: str) -> Iterator[Labelled]:
    """`<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>` (Qwen2-VL), marks or none."""
    for label, corners in NAMED.findall(MARK.sub("", text)):
        for numbers in CORNERS.findall(corners):
            yield label, list(map(float, numbers))


def _detections(text: str) -> Iterator[Labelled]:
    """`<|ref|>cat<|/ref|><|det|>[[128, 256, 896, 768]]<|/det|>` (DeepSeek-VL2: Wu and others, 2024)."""
    for label, lists in DETECTED.findall(text):
        for inner in BRACKETS.findall(lists):
            if (numbers := _four(f"[{inner}]")) is not None:
                yield label, numbers


def _objects(*keys: str) -> Callable[[str], Iterator[Labelled]]:
    """JSON objects with a list of four under one of `keys`, or with the four sides; of a reply cut short the whole."""

    def read(text: str) -> Iterator[Labelled]:
        for written in OBJECT.findall(text):
            try:
                found = orjson.loads(written)
            except ValueError:
                continue
            given = next((found[key] for key in keys if key in found), [found.get(side) for side in SIDES])
            if (numbers := _numbers(given)) is not None:
                yield str(found.get("label", "")), numbers

    return read


def _four(written: str) -> list[float] | None:
    try:
        return _numbers(orjson.loads(written))
    except ValueError:
        return None


def _numbers(value: Any) -> list[float] | None:
    whole = isinstance(value, list) and len(value) == 4 and all(isinstance(n, int | float) for n in value)
    return [float(n) for n in value] if whole else None


JSON_LIST = 'Locate {what}. Report bounding boxes as JSON: [{{"bbox_2d": [x0, y0, x1, y1], "label": "…"}}].'
# By the model_type of transformers.
FORMS = {
    "paligemma": Form("detect {what}", _locations, 1024, rows_first=True, everything="object"),
    "qwen2_vl": Form("Detect the bounding box of {what}.", _marks, 1000),
    "qwen2_5_vl": Form(JSON_LIST, _objects("bbox_2d"), None),
    "qwen3_vl": Form(JSON_LIST, _objects("bbox_2d"), 1000),
    "qwen3_vl_moe": Form(JSON_LIST, _objects("bbox_2d"), 1000),
    "deepseek_vl_v2": Form("<|ref|>{what}<|/ref|>.", _detections, 999),
}
HOSTED = Form(f"{JSON_LIST} The coordinates are thousandths of width and height.", _objects("bbox_2d"), 1000)
GEMINI = Form(JSON_LIST, _objects("box_2d"), 1000, rows_first=True)
MOONDREAM = Form("{what}", _objects(), 1)
