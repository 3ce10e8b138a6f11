"""The interface of engines that read what is written in pictures, a special kind of chat model.

A package adds one as it adds any chat model, see `vlmkit.models.types`: its class derives from `OcrModel`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from vlmkit.models.batching import BatchSize
from vlmkit.models.ocr.lines import Line
from vlmkit.models.types import Answer, Box, ChatModel, Request, RequestError, Sampling

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 4  # pictures, which are not reduced: twice as many wait
Rows = list[list[Line]]


class OcrModel(ChatModel):
    """Reads pictures, whatever the prompt says; a text in the place of a picture is what is written there.

    Several are read at once, each by few cores; a single one by all.
    """

    tasks = ("ocr", "ocr-boxes")

    @cached_property
    def batch(self) -> BatchSize:
        return BatchSize(BATCH)

    @abstractmethod
    def read(self, image: "Image", *, alone: bool = False) -> Rows:
        """What is written in an RGB picture, in reading order; `alone`: nothing else is read meanwhile.

        Runs in several threads. Raises RequestError.
        """

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer | RequestError]:
        if len(requests) == 1:
            return [self._answer(requests[0], alone=True)]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max(1, len(requests))) as pool:
            return list(pool.map(self._answer, requests))

    def _answer(self, request: Request, alone: bool = False) -> Answer | RequestError:
        """The lines of one picture, or those of several with an empty line between them."""
        try:
            pages = [self._page(picture, alone) for picture in request.all_pictures()]
        except RequestError as error:
            return error
        lines = [line for _, rows in pages for row in rows for line in row]
        boxes = list(map(box_of, lines)) if request.task == "ocr-boxes" else None
        text = "\n\n".join(text for text, _ in pages if text)
        return Answer(text, "stop", 0, boxes, confidence=_confidence(lines))

    def _page(self, picture: "Image | str", alone: bool) -> tuple[str, Rows]:
        if isinstance(picture, str):
            return picture, []
        rows = self.read(picture, alone=alone)
        return text_of(rows), rows


def text_of(rows: Rows) -> str:
    """The text of a picture: a line for each row."""
    return "\n".join(" ".join(line.text for line in row) for row in rows)


def box_of(line: Line) -> Box:
    left, top = line.quad.min(0).tolist()
    right, bottom = line.quad.max(0).tolist()
    box = [round(number, 1) for number in (left, top, right, bottom)]
    polygon = [round(number, 1) for number in line.quad.ravel().tolist()]
    return {"label": line.text, "box": box, "score": round(line.score, 4), "polygon": polygon}


def _confidence(lines: list[Line]) -> float | None:
    """The mean probability of the characters of all lines."""
    count = sum(len(line.text) for line in lines)
    return round(sum(line.score * len(line.text) for line in lines) / count, 4) if count else None
