"""The pictures of a question as the model takes them, and boxes back in pixels of the originals."""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

from vlmkit.errors import first_line
from vlmkit.generate.questions import ChatSample
from vlmkit.io.images import open_picture
from vlmkit.io.records import Failed
from vlmkit.io.sources import Bytes, Fetcher, PictureError, open_source
from vlmkit.models.types import Box, ChatModel


def scaled(box: Box, scale: tuple[float, float]) -> Box:
    """A box in pixels of the original, of which the model may have got a part of the pixels."""
    if scale == (1, 1):
        return box

    def multiplied(values: list[float]) -> list[float]:
        return [round(value * factor, 1) for value, factor in zip(values, cycle(scale), strict=False)]

    outline = {"polygon": multiplied(box["polygon"])} if "polygon" in box else {}
    return box | {"box": multiplied(box["box"])} | outline  # type: ignore[return-value]


def with_pictures(sample: ChatSample, work: Callable[[Any], Any]) -> ChatSample | Failed:
    """`sample` with `work` done on each picture; its failure names the picture where there are several."""
    done = []
    for picture in sample.pictures:
        try:
            done.append(work(picture))
        except PictureError as error:
            named = isinstance(picture, str) and len(sample.pictures) > 1
            return Failed.of(sample.record, f"{picture}: {error}" if named else error)
    return replace(sample, pictures=done)


def preprocessed(picture: str | Bytes, model: ChatModel, web: Fetcher | None = None) -> tuple[Any, tuple[float, float]]:
    """The picture at a path, or by URL from `web`, as `model` takes it. Raises PictureError.

    With it what its width and height are multiplied by to give those of the original.
    """
    source = open_source(picture, web) if isinstance(picture, str) else picture
    image, width, height = open_picture(source, model.size)
    try:
        return model.preprocess(image), (width / image.width, height / image.height)
    except MemoryError:
        raise PictureError("not enough memory to scale it") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise PictureError(f"the model's processor refuses it ({first_line(error)})") from None
