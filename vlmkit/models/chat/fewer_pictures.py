"""A request about many pages or frames, of which a model takes some: the first ones are asked about, which is told."""

import re
from dataclasses import replace

from vlmkit.models.types import Answer, Request, RequestError

MOST = re.compile(r"at most (\d+) (?:image|picture)|(?:limit|max\w*)\D{0,20}(\d+) (?:image|picture)", re.IGNORECASE)
TOO_MUCH = re.compile(
    r"too many (image|picture|token)|context.(length|window|size)|maximum context|too (long|large|big)|exceed", re.I
)
STATUSES = (400, 413, 422, 500)  # with which endpoints refuse that


class TooLong(RequestError):
    """The request has `length` tokens, more than the `context` of the model."""

    def __init__(self, length: int, context: int) -> None:
        what = f"{length} tokens with its pictures, more than the {context} of the model"
        super().__init__(what, "ask about fewer or smaller pictures, or name another model")
        self.length, self.context = length, context

    def fewer(self, request: Request) -> Request | None:
        """The request with as many pictures as may fit; None where that cannot help."""
        count = len(request.labels)
        return request.first(max(1, min(count - 1, count * self.context // self.length))) if count > 1 else None


def fewer(request: Request, status: int, reason: str) -> Request | None:
    """The request with as many pictures as an endpoint says that it takes, else half; None where that cannot help."""
    count = len(request.labels)
    if count < 2 or status not in STATUSES:
        return None
    if found := MOST.search(reason):
        most = int(found[1] or found[2])
        return request.first(most) if 0 < most < count else None
    return request.first(count // 2) if status == 413 or TOO_MUCH.search(reason) else None


def noted(answer: Answer | RequestError, request: Request, sent: Request) -> Answer | RequestError:
    """`answer`, with a note that it is about the pictures of `sent` alone."""
    if isinstance(answer, RequestError) or answer.note:
        return answer
    return replace(answer, note=left_out(len(request.labels), sent.labels[0], sent.labels[-1]))


def left_out(count: int, first: str, last: str) -> str:
    """What is said of a model that got fewer pages or frames than there are."""
    shown = first if first == last else f"{first} to {last}"
    others = "ask about others with --pages or --every, or each with --each"
    return f"the model takes no more, it got {shown} of {count}: {others}"
