"""The contents of requests: texts and pictures, in every form in which clients write them."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from vlmkit.serve.errors import ApiError

MAX_PICTURES = 256  # in one request
MAX_CHARACTERS = 1 << 20  # of the texts of one request


class Part(NamedTuple):
    """A text, or a reference to a picture (see `pictures`); `param` is where in the request it stands."""

    is_picture: bool
    value: str
    param: str


def content_parts(content: Any, param: str) -> list[Part]:
    """The parts of `content`, a text or a list as in OpenAI's messages. Texts that follow each other are one.

    Raises ApiError.
    """
    if isinstance(content, str):
        return [Part(False, content, param)]
    if not isinstance(content, list) or not content:
        raise ApiError(400, f"{param} is neither a text nor a list of parts", code="invalid_value", param=param)
    found: list[Part] = []
    parts = [content_part(part, f"{param}.{i}") for i, part in enumerate(content)]
    for is_picture, group in groupby(parts, attrgetter("is_picture")):
        first, *rest = group
        found += [first, *rest] if is_picture else [first._replace(value="\n".join(p.value for p in (first, *rest)))]
    return found


def content_part(part: Any, param: str) -> Part:
    """{type: text, text}, {type: image_url, image_url: {url}} and the other forms in use, {text} and {image} alone."""
    if isinstance(part, str):
        return Part(False, part, param)
    if isinstance(part, dict):
        kind = part.get("type")
        if isinstance(text := part.get("text"), str) and kind in (None, "text", "input_text"):
            return Part(False, text, param)
        for name in ("image_url", "image", "image_base64"):
            found = part.get(name)
            found = found.get("url") if isinstance(found, dict) else found
            if isinstance(found, str) and kind in (None, name, "input_image"):
                return Part(True, found, f"{param}.{name}")
        if isinstance(kind, str):
            what = f"{param}: parts of the type {kind[:100]} are not supported, only text and image_url"
            raise ApiError(400, what, code="unsupported_content", param=param)
    raise ApiError(400, f"{param} holds neither text nor image_url", code="invalid_value", param=param)


def check_amount(parts: Sequence[Part]) -> None:
    """Raise ApiError where there are more pictures or longer texts than one request may have."""
    if sum(part.is_picture for part in parts) > MAX_PICTURES:
        raise ApiError(400, f"more than {MAX_PICTURES} pictures: send several requests", code="too_many_pictures")
    if sum(len(part.value) for part in parts if not part.is_picture) > MAX_CHARACTERS:
        what = f"the texts have more than {MAX_CHARACTERS} characters: send several requests"
        raise ApiError(400, what, code="too_much_text")
