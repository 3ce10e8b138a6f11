"""The pictures that a record is about: which of its fields name them, and where in its texts they stand."""

import base64
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vlmkit.io.records import Record
from vlmkit.io.sources import as_data, file_path, is_data, is_picture, is_picture_name, is_url
from vlmkit.io.walk import KIND_OF

MARK = "<image>"  # the place of a picture in a text, as in LLaVA's data
LEADING_MARKS = re.compile(rf"\A(?:\s*{MARK})+\s*")
# How other data sets and templates write that.
FOREIGN_MARK = re.compile(r"(?i)<\|?image(?:[ _]?(?:\d+|pad|placeholder|token))?\|?>|<imagehere>|\[img\]")
FIELDS = ("image", "images")
# Keys under which other tools name the picture of a record.
OTHER_KEYS = ["image_path", "image_file", "image_url", "img", "img_path", "file_name", "filename", "file", "path"]
OTHER_KEYS += ["file_path", "filepath"]
LONGEST_PATH = 4096  # characters
BASE64 = re.compile(r"[A-Za-z0-9+/]{64}")  # what it begins with
# Texts, which may end like the name of a picture.
TEXTS = {"question", "text", "answer", "answers", "caption", "captions", "conversations", "query", "prompt", "system"}
TEXTS |= {"ocr", "label", "labels", "category", "chosen", "rejected", "reasoning", "error", "model"}
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
PICTURE_WORDS = {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "pic", "pics"}
PICTURE_WORDS |= {"jpg", "jpeg", "png", "webp", "screenshot"}
# Last words of keys about a picture that do not name it.
ABOUT = {"width", "height", "size", "format", "mode", "type", "count", "caption", "captions", "text", "description"}
ABOUT |= {"source", "license", "licence", "hash", "category", "class", "label", "ocr"}
# A second picture beside `image`, as in `image_2`, `img`, `left_image`; `image_url` may be where the first came from.
ORDINAL = r"(?:left|right|before|after|first|second|other|query|target|reference|[a-d]|\d+)"
SIBLING = re.compile(rf"(?i)(?:{ORDINAL}[_-])?(?:image|img|picture|photo|pic)s?(?:[_-]?{ORDINAL})?")


class RecordError(ValueError):
    """A record that cannot be used; the message says why, `remedy` what to do."""

    def __init__(self, why: str, remedy: str = "check the record") -> None:
        super().__init__(why)
        self.remedy = remedy


def picture_names(record: Record) -> list[str]:
    """The paths and URLs of the pictures of a record, from `images` or `image`; "", null and [] are none.

    Raises RecordError where another field names a picture, so that none is left out: a question about a picture is
    never asked without it.
    """
    one, several = (_names(record.get(field), field) for field in FIELDS)
    if one and several and not set(one) <= set(several):
        raise RecordError('"image" and "images" name different pictures', 'name all of them in "images"')
    names = several or one
    for key, value in record.items():
        if key not in FIELDS and (_is_sibling(key, value, names) if names else _names_picture(key, value)):
            raise RecordError(f'"{key}" names a picture, but is not read', 'name pictures in "image" or "images"')
    return names


def with_image(record: Record) -> Record:
    """`record` with the picture that it names under one of OTHER_KEYS as its `image`.

    As it is where it has one already, or where these keys name several. A list in `image` is `images`, or the one that
    it holds.
    """
    if isinstance(several := record.get("image"), list) and not record.get("images"):
        name, value = ("image", several[0]) if len(several) == 1 else ("images", several)
        return {name if key == "image" else key: value if key == "image" else old for key, old in record.items()}
    if any(record.get(field) for field in FIELDS):
        return record
    values = [(key, value) for key in OTHER_KEYS if isinstance(value := record.get(key), str)]
    named = {value for key, value in values if _names_picture(key, value) and _is_usable(value)}
    return record | {"image": named.pop()} if len(named) == 1 else record


def is_complete(record: Record) -> bool:
    """Whether all that is done to records that are read leaves this one as it is: true of most, and quickly told."""
    image, key = record.get("image"), record.get("id")
    if not isinstance(key, str) or not key or not isinstance(image, str) or "images" in record:
        return False
    return is_absolute(image) and BASE64.match(image) is None


def is_absolute(path: str) -> bool:
    """True of most absolute, normalised paths, and quicker than os.path.abspath."""
    return path[:1] == "/" and "//" not in path and "/." not in path and path[-1] != "/"


def singly(record: Record) -> list[Record]:
    """What a command that looks at one picture at a time makes of `record`.

    A group of `search --duplicates` stands for the records that it names, one for each of its pictures. Another one
    that names a single picture in `images` has it as its `image`.
    """
    images = record.get("images")
    if not isinstance(images, list) or record.get("image") or not all(isinstance(one, str | dict) for one in images):
        return [record]
    if not isinstance(ids := record.get("ids"), list) or "id" in record:
        return [record | {"image": images[0]}] if len(images) == 1 else [record]
    rest = {name: value for name, value in record.items() if name not in ("images", "files")}
    names = ids if len(ids) == len(images) else images
    return [{"id": name, "image": image} | rest for name, image in zip(names, images, strict=True)] or [record]


def locate(value: Any, absolute: Callable[[str], str]) -> Any:
    """The value of `image` or `images` with `absolute` paths, file: URLs among them, and base64 as data: URLs.

    {path}, {url} and {bytes} are what they hold, as other tools write it; bytes come before the path that they had.
    """
    if isinstance(value, str):
        if _is_base64(value):
            return as_data("".join(value.split()))
        if value[:7].lower() == "file://":
            return file_path(value)
        return value if is_data(value) else absolute(value)
    if isinstance(value, list):
        return [locate(one, absolute) for one in value]
    if isinstance(value, dict) and value.keys() <= {"path", "bytes", "url", "detail"}:
        named = value.get("bytes") or value.get("path") or value.get("url")
        return locate(named, absolute) if isinstance(named, str) else value
    return value


def _is_base64(value: str) -> bool:
    """Whether a text is a picture in base64: a path may be as long, but does not begin as a picture does."""
    return BASE64.match(value) is not None and is_picture(base64.b64decode(value[:64]))


def at_marks(text: str, pictures: Sequence[Any]) -> Iterator[Any]:
    """The parts of `text`, strings, and the `pictures` in order: each at its mark, without marks before the text."""
    first, *texts = text.split(MARK)
    if len(texts) != len(pictures):
        yield from pictures
        yield text
        return
    yield first
    for picture, part in zip(pictures, texts, strict=True):
        yield picture
        yield part


def _names(value: Any, field: str) -> list[str]:
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) and one.strip() for one in values):
        raise RecordError(f"{field} is not a path" if field == "image" else f"{field} is not a list of paths")
    if not all(map(_is_usable, values)):
        raise RecordError(f"{field} is neither a path nor a picture in base64", "save the picture as a file")
    return values


def _is_usable(value: str) -> bool:
    """Whether this may be a path, or holds a picture."""
    return len(value) <= LONGEST_PATH or is_data(value)


def _is_sibling(key: str, value: Any, names: list[str]) -> bool:
    """Whether the field names a picture that is not among `names`, by file name."""
    known = {os.path.basename(name) for name in names}
    named = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return bool(SIBLING.fullmatch(key)) and any(
        isinstance(one, str) and _is_reference(one) and os.path.basename(one) not in known for one in named
    )


def _names_picture(key: str, value: Any) -> bool:
    """Whether a field names a picture: by its value, or by its name if the value may be a path or a number."""
    words = [word.lower() for word in WORD.findall(key)]
    if key in TEXTS or isinstance(value, bool) or not value:
        return False
    if PICTURE_WORDS & set(words) and words[-1] not in ABOUT:
        return not isinstance(value, str) or _is_reference(value) or not re.search(r"\s", value.strip())
    if isinstance(value, dict):
        return any(_names_picture("", inner) for inner in value.values())
    if isinstance(value, list):
        return any(_names_picture("", inner) for inner in value)
    return isinstance(value, str) and _is_reference(value)


def _is_reference(value: str) -> bool:
    if value[:11].lower() == "data:image/":
        return True
    name = re.split("[?#]", value)[0] if is_url(value) else value
    return is_picture_name(name) or KIND_OF.get(os.path.splitext(name)[1][1:].lower()) in ("RAW", "video")
