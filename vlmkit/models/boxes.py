"""Boxes in the text that a model writes, each family in its own format, as pixels of the original picture."""

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
OBJECT = re.compile(r"\{[^{}]*\}")
SPECIAL = re.compile(r"<\|[^|]*\|>")


class BoxFormat(NamedTuple):
    """The prompt that asks for boxes, the reader of the reply, and what its numbers mean.

    `scale` is what stands for the full width and height, None where they are pixels of the picture as the model saw it;
    `rows_first` where each corner is y, x; `everything` what is asked for where the user named nothing.
    """

    prompt: str
    read: Callable[[str], Iterator[Labelled]]
    scale: float | None
    rows_first: bool = False
    everything: str = EVERYTHING

    def prompt_for(self, what: str) -> str:
        """The prompt for the boxes of `what`."""
        return self.prompt.format(what=self.everything if what == EVERYTHING else what)


def find_boxes(text: str, form: BoxFormat, original: Size, scaled: Size | None = None) -> list[Box]:
    """`{label, box: [x0, y0, x1, y1]}` for each box in `text`, in pixels of the picture of size `original`.

    `scaled` is the size at which the model saw it, for formats whose numbers are pixels. What lies outside is cut off,
    and boxes of which nothing is left are dropped.
    """
    width, height = original
    across, down = (form.scale, form.scale) if form.scale else scaled or original
    found = []
    for label, numbers in form.read(text):
        one, two, three, four = numbers
        x0, y0, x1, y1 = (two, one, four, three) if form.rows_first else (one, two, three, four)
        xs = sorted(min(max(x * width / across, 0.0), float(width)) for x in (x0, x1))
        ys = sorted(min(max(y * height / down, 0.0), float(height)) for y in (y0, y1))
        if xs[0] < xs[1] and ys[0] < ys[1]:
            box = [round(value, 1) for value in (xs[0], ys[0], xs[1], ys[1])]
            found.append(Box(label=SPECIAL.sub("", label).strip(" \n\t.,:;"), box=box))
    return found


def _locations(text: str) -> Iterator[Labelled]:
    """`<loc0256><loc0128><loc0768><loc0896> cat ; …` (PaliGemma: Beyer and others, 2024)."""
    for tokens, label in LOCATIONS.findall(text):
        yield label, list(map(float, LOCATION.findall(tokens)))


def _corners(text: str) -> Iterator[Labelled]:
    """`<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>` (Qwen2-VL), or without tokens."""
    for label, corners in NAMED.findall(SPECIAL.sub("", text)):
        for numbers in CORNERS.findall(corners):
            yield label, list(map(float, numbers))


def _objects(key: str) -> Callable[[str], Iterator[Labelled]]:
    """JSON objects with four numbers under `key`; of a reply that was cut short the complete ones."""

    def read(text: str) -> Iterator[Labelled]:
        for written in OBJECT.findall(text):
            try:
                found: dict[str, Any] = orjson.loads(written)
            except ValueError:
                continue
            numbers = found.get(key)
            if isinstance(numbers, list) and len(numbers) == 4 and all(isinstance(n, int | float) for n in numbers):
                yield str(found.get("label", "")), [float(n) for n in numbers]

    return read


JSON_LIST = 'Locate {what}. Report bounding boxes as JSON: [{{"bbox_2d": [x0, y0, x1, y1], "label": "…"}}].'
FORMATS = {  # by the model_type of transformers
    "paligemma": BoxFormat("detect {what}", _locations, 1024, rows_first=True, everything="object"),
    "qwen2_vl": BoxFormat("Detect the bounding box of {what}.", _corners, 1000),
    "qwen2_5_vl": BoxFormat(JSON_LIST, _objects("bbox_2d"), None),
    "qwen3_vl": BoxFormat(JSON_LIST, _objects("bbox_2d"), 1000),
    "qwen3_vl_moe": BoxFormat(JSON_LIST, _objects("bbox_2d"), 1000),
}
HOSTED = BoxFormat(f"{JSON_LIST} The coordinates are thousandths of width and height.", _objects("bbox_2d"), 1000)
GEMINI = BoxFormat(JSON_LIST, _objects("box_2d"), 1000, rows_first=True)
