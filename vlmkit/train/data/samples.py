"""Training samples: a record becomes dialogues, a preference, or a picture with captions."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from re import compile as pattern
from typing import Any

from vlmkit.io import pictures
from vlmkit.io.pictures import MARK
from vlmkit.io.records import Failed, Record
from vlmkit.io.sources import Bytes
from vlmkit.io.values import text_of

EMPTY: tuple[Any, ...] = (None, "", [])
FORM_FIELDS = ("conversations", "question", "captions", "caption")
QUESTIONS = "instruction", "prompt", "query"
REPLIES = "response", "output", "completion", "answer"
SIDES = pattern(r"(?i)\b(left|right)")
SPEAKERS = {"human": "user", "user": "user", "gpt": "reply", "assistant": "reply"}
SPEAKERS |= {"system": "system", "developer": "system"}


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, `<image>` where each picture stands, and the reply to learn."""

    user: str
    reply: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Pictures, not opened, in the order of their placeholders, and one or more turns about them."""

    id: str
    pictures: tuple[Bytes, ...]
    turns: tuple[Turn, ...]
    system: str = ""
    mirror: bool = False  # no caption says left or right: pictures may be mirrored or cropped


@dataclass(frozen=True, slots=True)
class Preference:
    """A question with the better and the worse reply."""

    id: str
    pictures: tuple[Bytes, ...]
    question: str
    chosen: str
    rejected: str
    system: str = ""


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture, not opened, and its captions, at least one."""

    id: str
    picture: Bytes
    captions: tuple[str, ...]

    @property
    def pictures(self) -> tuple[Bytes, ...]:
        return (self.picture,)


class Unusable(Exception):
    """The row cannot be used: `reason`, and the picture it is about where it is about one."""

    def __init__(self, reason: str, detail: str = "", image: str | None = None) -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.image = image


def in_usual_form(record: Record) -> Record:
    """`record` with the fields that `parse_dialogues` reads, where it has those of other tools. Raises Unusable.

    `messages` of chat APIs, and `texts` of the Cauldron, become `conversations`, and the pictures that parts of them
    name `images`; one of QUESTIONS, an `instruction` perhaps with `input`, becomes `question`, one of REPLIES `answer`.
    """
    given = {name for name, value in record.items() if value not in EMPTY}
    if given & {*FORM_FIELDS} - {"question"} or ("question" in given and given & {"answer", "answers"}):
        return record
    named: list[str] = []
    for field, parse in (("messages", _message), ("texts", _exchange)):
        if isinstance(parts := record.get(field), list) and parts:
            said = [one for part in parts for one in parse(part, named)]
            rest = {name: value for name, value in record.items() if name != field}
            return rest | {"conversations": said} | ({"images": named} if named else {})
    asked = next((name for name in ("question", *QUESTIONS) if name in given), None)
    reply = next((name for name in REPLIES if name in given), None)
    if asked is None or (reply is None and "chosen" not in given):
        return record
    words = [_text(record[name], name) for name in (asked, "input") if name in given]
    rest = {name: value for name, value in record.items() if name not in (asked, "input", reply)}
    return rest | {"question": "\n".join(words)} | ({"answer": record[reply]} if reply else {})


def _exchange(part: Any, named: list[str]) -> list[Record]:
    """A part of `texts`, a question with its answer."""
    if not isinstance(part, dict) or not {"user", "assistant"} <= part.keys():
        raise Unusable("malformed conversation", "a text has no user and assistant")
    return [{"from": "user", "value": part["user"]}, {"from": "assistant", "value": part["assistant"]}]


def _message(message: Any, named: list[str]) -> list[Record]:
    """A part of `conversations`; the pictures that the content names are added to `named`."""
    if not isinstance(message, dict):
        raise Unusable("malformed conversation", "a message is not an object")
    content = message.get("content")
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image", "image_url"):
            raise Unusable("malformed conversation", "a part is neither a text nor an image")
        if kind != "text":
            found = next((part[name] for name in ("image", "image_url", "path", "url") if part.get(name)), None)
            found = found.get("url") if isinstance(found, dict) else found
            named += [str(found)] * bool(found)
    if isinstance(content, list):
        content = "\n".join(_text(part.get("text"), "text") if part["type"] == "text" else MARK for part in content)
    return [{"from": message.get("role"), "value": content}]


def picture_names(record: Record) -> list[str]:
    """The pictures a record names, as `ask` reads them. Raises Unusable."""
    try:
        return pictures.picture_names(record)
    except pictures.RecordError as error:
        raise Unusable("malformed row", str(error)) from None


def parse_dialogues(record: Record, id: str, pictures: tuple[Bytes, ...]) -> list[Dialogue]:
    """The samples of a record: one for each caption, else one. Raises Unusable.

    Where a record could be read in several ways a conversation comes first, then a question, then captions.
    """
    form = _form(record)
    if form == "conversations":
        system, turns = _conversation(record["conversations"])
    elif form == "question":
        system = _text(record.get("system") or "", "system")
        turns = [Turn(_text(record["question"], "question"), _answer(record))]
    else:
        captions = _caption_texts(record, pictures, "no captions, question or conversations")
        placeholders = "\n".join([MARK] * len(pictures))
        turns_of = {caption: _marked([Turn(placeholders, caption)], len(pictures)) for caption in captions}
        return [Dialogue(id, pictures, turns_of[text], mirror=not SIDES.search(text)) for text in captions]
    return [Dialogue(id, pictures, _marked(turns, len(pictures)), system)]


def _form(record: Record) -> str | None:
    """The field that says what the sample is. Tables have all columns in each row, so empty ones come last."""
    present = [name for name in FORM_FIELDS if name in record]
    return next((name for name in present if record[name] not in EMPTY), present[0] if present else None)


def parse_preferences(record: Record, id: str, pictures: tuple[Bytes, ...]) -> list[Preference]:
    """The preference of a record {question, chosen, rejected}; without a question, of captions. Raises Unusable."""
    of_captions = pictures and record.get("question") in EMPTY
    asked = record | {"question": MARK * len(pictures)} if of_captions else record
    missing = [name for name in ("question", "chosen", "rejected") if name not in asked]
    if missing:
        raise Unusable("malformed row", f"no {missing[0]}")
    question, chosen, rejected = (_text(asked[name], name) for name in ("question", "chosen", "rejected"))
    if chosen == rejected:
        raise Unusable("chosen and rejected are the same")
    for reply in (chosen, rejected):
        (turn,) = _marked([Turn(question, reply)], len(pictures))
    return [Preference(id, pictures, turn.user, chosen, rejected, _text(record.get("system") or "", "system"))]


def parse_captioned(record: Record, id: str, pictures: tuple[Bytes, ...]) -> list[Captioned]:
    """The picture of a record {image, captions}. Raises Unusable."""
    captions = _caption_texts(record, pictures, "no captions")
    if len(pictures) > 1:
        raise Unusable("several pictures in a row")
    if not all(captions):
        raise Unusable("empty caption")
    return [Captioned(id, pictures[0], tuple(captions))]


def _caption_texts(record: Record, pictures: tuple[Bytes, ...], lacking: str) -> list[str]:
    single = "caption" in record and record.get("captions") in EMPTY
    captions = [record["caption"]] if single else record.get("captions")
    if captions is None:
        raise Unusable("malformed row", lacking)
    if not pictures:
        raise Unusable("caption without a picture")
    return _texts(captions, "captions")


def _answer(record: Record) -> str:
    """The most frequent reference answer, of several the first; without references a model's answer.

    An `answer` that is a list of texts holds references, too; one of numbers is one answer.
    """
    answers, answer = record.get("answers"), record.get("answer")
    if not answers and isinstance(answer, list) and all(isinstance(one, str | dict) for one in answer):
        answers = answer
    if answers:
        return Counter(_texts(answers, "answers")).most_common(1)[0][0]
    return _text("" if answer is None else answer, "answer")


def _conversation(value: Any) -> tuple[str, list[Turn]]:
    """(system text, turns) of LLaVA's conversation: human and gpt alternate, perhaps after a system text.

    The names of chat APIs, role and content, are taken too.
    """
    said: list[tuple[str | None, str]] = []
    for part in value if isinstance(value, list) else []:
        if not isinstance(part, dict):
            raise Unusable("malformed conversation", "a part is not an object")
        speaker = SPEAKERS.get(str(part.get("from", part.get("role"))))
        said.append((speaker, _text(part.get("value", part.get("content")), "value")))
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    speakers = [speaker for speaker, _ in said]
    if not said or speakers != ["user", "reply"] * (len(said) // 2):
        raise Unusable("malformed conversation", "human and gpt do not alternate")
    texts = [text for _, text in said]
    return system, [Turn(user, reply) for user, reply in zip(texts[::2], texts[1::2], strict=True)]


def _marked(turns: list[Turn], pictures: int) -> tuple[Turn, ...]:
    """`turns` with as many placeholders as pictures; where there is none, all are put before the first question."""
    if not all(turn.reply for turn in turns):
        raise Unusable("empty reply")
    if not all(turn.user for turn in turns):
        raise Unusable("empty question")
    if any(MARK in turn.reply for turn in turns):
        raise Unusable("<image> in a reply")
    placeholders = sum(turn.user.count(MARK) for turn in turns)
    if not placeholders and pictures:
        return (Turn("\n".join([MARK] * pictures + [turns[0].user]), turns[0].reply), *turns[1:])
    if placeholders != pictures:
        raise Unusable(
            f"{'more' if placeholders > pictures else 'fewer'} <image> placeholders than pictures",
            f"{placeholders}, {pictures}",
        )
    return tuple(turns)


def _text(value: Any, name: str) -> str:
    """`value` as text, also a number, a truth value or VQA's `{"answer": …}`."""
    text = text_of(value)
    if text is None:
        raise Unusable("malformed row", f"{name} is not a text")
    return text.strip()


def _texts(value: Any, name: str) -> list[str]:
    """The texts of a list, or the only one."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise Unusable("malformed row", f"{name} is not a list of texts")
    return [_text(item, name) for item in values]


def is_coco(record: Record) -> bool:
    """Whether `record` is a COCO document and no record of one picture."""
    return all(isinstance(record.get(name), list) for name in ("images", "annotations"))


def coco_records(document: Record) -> Iterator[Record | Failed]:
    """{id, image, captions} for each picture of the document, in its order; one without captions has none."""
    captions: dict[object, list[object]] = {}
    for number, found in enumerate(document["annotations"]):
        if isinstance(found, dict) and "caption" in found:
            captions.setdefault(found.get("image_id"), []).append(found["caption"])
        else:
            yield Failed(f"annotations[{number}]", None, "no caption")
    for number, picture in enumerate(document["images"]):
        if isinstance(picture, dict) and isinstance(picture.get("file_name"), str):
            key = picture.get("id")
            yield {"id": str(key), "image": picture["file_name"], "captions": captions.pop(key, None)}
        else:
            yield Failed(f"images[{number}]", None, "no file_name")
    for key in captions:
        yield Failed(str(key), None, "captions of a picture that the document does not have")
