"""Which samples can be read or looked at, and what is known of their text without that."""

from typing import Any

from vlmkit.generate.questions import READ, ChatSample
from vlmkit.io.parts import Part
from vlmkit.io.records import Failed
from vlmkit.io.sources import open_source


def one_picture(sample: ChatSample) -> ChatSample | Failed:
    """`sample`, if it has one picture."""
    if len(sample.pictures) > 1:
        return Failed.of(sample.record, "several pictures where one is required")
    return some_picture(sample)


def some_picture(sample: ChatSample) -> ChatSample | Failed:
    """`sample`, if it has a picture."""
    if sample.pictures:
        return sample
    return Failed.of(sample.record, "no picture", "name a file or folder that is there")


def known_text(sample: ChatSample, picture: Any) -> str | None:
    """What is written in `picture` as its record says or, of a page, its text layer. Raises PictureError."""
    own = sample.record.get("ocr")
    if isinstance(own, str) and own.strip() and len(sample.pictures) == 1:
        return own
    source = open_source(picture) if isinstance(picture, str) else picture
    return source.details().get("ocr") if isinstance(source, Part) else None


def has_question(sample: ChatSample) -> bool:
    """Whether its record asks something of its own."""
    return sample.record.get("question") not in (None, "", READ)
