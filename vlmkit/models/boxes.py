"""Boxes in the text that a model writes, each family in its own format, as pixels of the original picture."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from vlmkit.models.types import Box, RequestError

EVERYTHING = "every object"
Size = tuple[float, float]  # width, height
Labelled = tuple[str, Sequence[float]]  # a label and the numbers as the model wrote them, four if it is a box

LOCATIONS = re.compile(r"((?:<loc\d{4}>){4})([^<;]*)")
LOCATION = re.compile(r"<loc(\d{4})>")
NAMED = re.compile(r"([^()]*?)((?:\(\d+, ?\d+\), ?\(\d+, ?\d+\)[^()\w]*)+)")
CORNERS = re.compile(r"\((\d+), ?(\d+)\), ?\((\d+), ?(\d+)\)")
OBJECT = re.compile(r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}")  # with two levels of others inside
NUMBER = r"-?\d+(?:\.\d+)?"
NUMBERS = re.compile(rf"[\[(]\s*{NUMBER}\s*,\s*-?\d|(?:{NUMBER}\b\D{{1,24}}){{3}}\d")  # a list of them, or four
LIST = re.compile(rf"\[\s*{NUMBER}(?:\s*,\s*{NUMBER}){{3}}\s*\]")
BLOCK = re.compile(r"(?:<ref>([^<]*)</ref>\s*)?<box>([^<]*)</box>")
LABELS = ("label", "name", "class", "object", "category")
BOX_KEYS = ("bbox_2d", "bbox", "box", "bounding_box", "polygon", "points")
EDGES = [("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax")]
EDGES += [("x_min", "y_min", "x_max", "y_max"), ("left", "top", "right", "bottom")]
SIDES = ("x", "y", "width", "height")
UNREADABLE = "the reply holds numbers, but no box that can be read"
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


class Found(NamedTuple):
    """The boxes of a reply, and what was cut off, left out or guessed, for a message."""

    boxes: list[Box]
    note: str = ""


def find_boxes(text: str, form: BoxFormat, original: Size, scaled: Size | None = None) -> Found:
    """`{label, box: [x0, y0, x1, y1]}` for each box in `text`, in pixels of the picture of size `original`.

    `scaled` is the size at which the model saw it, for formats whose numbers are pixels. What lies outside is cut off,
    and boxes of which nothing is left are dropped; the note counts both.
    """
    written = list(form.read(text))
    if not written and NUMBERS.search(text):
        return Found([], UNREADABLE)
    full = (form.scale, form.scale) if form.scale else scaled or original
    boxes: list[Box] = []
    cut = 0
    for label, corners in written:
        if len(corners) != 4:
            continue
        edges = _edges(corners, form)
        x0, y0, x1, y1 = (
            min(max(edge * side / most, 0.0), float(side))
            for edge, side, most in zip(edges, original * 2, full * 2, strict=True)
        )
        if x0 < x1 and y0 < y1:
            cut += not _is_inside(edges, full)
            box = [round(value, 1) for value in (x0, y0, x1, y1)]
            boxes.append(Box(label=SPECIAL.sub("", label).strip(" \n\t.,:;"), box=box))
    left_out = len(written) - len(boxes)
    notes = [f"{cut} of {len(written)} boxes cut off at the edge of the picture"] if cut else []
    notes += (
        [f"{left_out} of {len(written)} boxes outside the picture, empty or malformed, left out"] if left_out else []
    )
    return Found(boxes, "; ".join(notes))


def hosted_format(name: str) -> BoxFormat:
    """The format of a model of an endpoint, by the family that its name tells, else the one that a prompt asks for."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((FORMATS[form] for family, form in HOSTED_FAMILIES.items() if family in letters), HOSTED)


def find_hosted_boxes(text: str, form: BoxFormat, original: Size, sent: Size) -> Found:
    """As `find_boxes`, for a picture that was sent at the size `sent`.

    Of a model whose family is not known the values decide: up to 1 they are fractions, up to 1000 thousandths, as the
    prompt asks, else pixels of the picture sent or of the original. Raises RequestError where nothing fits.
    """
    if form is HOSTED and '"box_2d"' in text and '"bbox_2d"' not in text:
        form = GEMINI
    written = [_edges(corners, form) for _, corners in form.read(text) if len(corners) == 4]
    if not written and NUMBERS.search(text):
        raise RequestError(UNREADABLE, "name another model")
    if form not in (HOSTED, GEMINI):
        return find_boxes(text, form, original, sent)
    units: list[tuple[Size, str]] = [
        ((1000, 1000), ""),
        (sent, f"pixels of the picture sent, {sent[0]} x {sent[1]}"),
        (original, f"pixels of the original, {original[0]} x {original[1]}"),
    ]
    if written and all(abs(edge) <= 1 for edges in written for edge in edges):
        units = [((1, 1), "fractions of width and height")]
    for full, unit in units:
        if all(_is_inside(edges, full) for edges in written):
            found = find_boxes(text, form._replace(scale=None), original, full)
            guess = f"the numbers of the boxes are read as {unit}" if unit else ""
            return Found(found.boxes, "; ".join(filter(None, [guess, found.note])))
    if not any(_is_inside(edges, (1000, 1000)) for edges in written):
        what = "the numbers of the boxes are neither thousandths nor pixels of the picture"
        raise RequestError(what, "name another model")
    return find_boxes(text, form, original)


def _edges(corners: Sequence[float], form: BoxFormat) -> list[float]:
    """The left, upper, right and lower edge of a box, in the unit of `corners`."""
    one, two, three, four = corners
    x0, y0, x1, y1 = (two, one, four, three) if form.rows_first else (one, two, three, four)
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


def _is_inside(edges: Sequence[float], full: Size) -> bool:
    """Whether a box is inside the picture but for one unit, to which models round."""
    return all(-1 <= edge <= side + 1 for edge, side in zip(edges, full * 2, strict=True))


def _locations(text: str) -> Iterator[Labelled]:
    """`<loc0256><loc0128><loc0768><loc0896> cat ; …` (PaliGemma: Beyer and others, 2024)."""
    for tokens, label in LOCATIONS.findall(text):
        yield label, list(map(float, LOCATION.findall(tokens)))


def _corners(text: str) -> Iterator[Labelled]:
    """`<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>` (Qwen2-VL), or without tokens."""
    for label, corners in NAMED.findall(SPECIAL.sub("", text)):
        for numbers in CORNERS.findall(corners):
            yield label, list(map(float, numbers))


def _json(*keys: str) -> Callable[[str], Iterator[Labelled]]:
    """JSON objects with numbers under one of `keys`; of a reply that was cut short the complete ones.

    In a reply without objects also blocks such as `<ref>cat</ref><box>(1,2),(3,4)</box>` (Qwen-VL, InternVL), corners
    behind a label, and lists of four numbers alone.
    """

    def objects(text: str) -> Iterator[Labelled]:
        for written in OBJECT.findall(text):
            with contextlib.suppress(ValueError):
                yield from _boxes_of(orjson.loads(written), keys)

    def read(text: str) -> Iterator[Labelled]:
        readers = (objects,) if "{" in text else (_blocks, _corners, _lists)
        yield from next(filter(None, (list(reader(text)) for reader in readers)), [])

    return read


def _boxes_of(found: dict[str, Any], keys: Sequence[str], label: str = "") -> Iterator[Labelled]:
    """The boxes of an object and of those inside it, which have its label unless they bring one."""
    label = next((str(found[name]) for name in LABELS if isinstance(found.get(name), str)), label)
    edges = next((names for names in (*EDGES, SIDES) if found.keys() >= set(names)), ())
    numbers = [found[name] for name in edges]
    if edges and all(isinstance(number, int | float) for number in numbers):
        x, y, *ends = map(float, numbers)
        yield label, [x, y, x + ends[0], y + ends[1]] if edges is SIDES else [x, y, *ends]
        return
    for name, value in found.items():
        inner = value if isinstance(value, list) else [value]
        if name in keys and not isinstance(value, dict):
            yield from ((label, box) for box in _boxes_in(value))
        for one in inner:
            if isinstance(one, dict):
                yield from _boxes_of(one, keys, label)


def _boxes_in(value: Any) -> Iterator[list[float]]:
    """The numbers of a box, of each in a list, or of that around an outline: [x, y, x, y, x, y, …], [[x, y], …]."""
    if not isinstance(value, list) or not value:
        return
    if all(isinstance(number, int | float) for number in value):
        columns, rows = value[::2], value[1::2]
        is_outline = len(value) > 4 and len(columns) == len(rows)
        box = [min(columns), min(rows), max(columns), max(rows)] if is_outline else value
        yield list(map(float, box))
    elif len(value) > 1 and all(isinstance(point, list) and len(point) == 2 for point in value):
        yield from _boxes_in([number for point in value for number in point])
    else:
        for inner in value:
            yield from _boxes_in(inner)


def _blocks(text: str) -> Iterator[Labelled]:
    for label, inside in BLOCK.findall(text):
        numbers = list(map(float, re.findall(NUMBER, inside)))
        yield from ((label, numbers[start : start + 4]) for start in range(0, len(numbers), 4))


def _lists(text: str) -> Iterator[Labelled]:
    for written in LIST.findall(text):
        yield "", list(map(float, re.findall(NUMBER, written)))


JSON_LIST = 'Locate {what}. Report bounding boxes as JSON: [{{"bbox_2d": [x0, y0, x1, y1], "label": "…"}}].'
FORMATS = {  # by the model_type of transformers
    "paligemma": BoxFormat("detect {what}", _locations, 1024, rows_first=True, everything="object"),
    "qwen2_vl": BoxFormat("Detect the bounding box of {what}.", _corners, 1000),
    "qwen2_5_vl": BoxFormat(JSON_LIST, _json("bbox_2d"), None),
    "qwen3_vl": BoxFormat(JSON_LIST, _json("bbox_2d"), 1000),
    "qwen3_vl_moe": BoxFormat(JSON_LIST, _json("bbox_2d"), 1000),
}
HOSTED = BoxFormat(
    f"{JSON_LIST} The coordinates are thousandths of width and height.",
    _json(*BOX_KEYS),
    1000,
)
HOSTED_FAMILIES = {"qwen25vl": "qwen2_5_vl", "qwen3vl": "qwen3_vl"}  # by what the name of a model holds
GEMINI = BoxFormat(JSON_LIST, _json("box_2d"), 1000, rows_first=True)
