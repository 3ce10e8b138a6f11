"""What a page of pictures shows, as it stands in its URL."""

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from vlmkit.errors import VlmkitError
from vlmkit.index.near import Near, parse_near
from vlmkit.serve.errors import ApiError

PAGE = 60  # pictures
FARTHEST = 100_000  # hit that a search is asked for
BY = ("", "both", "meaning", "words")
NEAR = 5.0  # kilometres


@dataclass(frozen=True, slots=True)
class Wanted:
    """The parameters of `/`, by their names in the URL.

    Words `q`, looked for `by` words, meaning or both, words to subtract, a record to be `like`, an uploaded `image`;
    the least score; the first and the last date; camera, part of the path, place as `LAT,LON` and how many kilometres
    from it; conditions of `--where`.
    """

    q: str = ""
    by: str = ""
    minus: str = ""
    like: str = ""
    image: str = ""
    least: str = ""
    after: str = ""
    before: str = ""
    camera: str = ""
    path: str = ""
    near: str = ""
    within: str = ""
    where: tuple[str, ...] = ()
    start: int = 0

    @classmethod
    def of(cls, parameters: QueryParams) -> "Wanted":
        """Raises ApiError."""
        texts: dict[str, Any] = {
            field.name: parameters.get(field.name, "").strip() for field in fields(cls) if field.type is str
        }
        where = tuple(filter(None, (text.strip() for text in parameters.getlist("where"))))
        start = parameters.get("start", "0")
        if not start.isascii() or not start.isdecimal() or int(start) > FARTHEST:
            raise wrong("start", "a number of pictures")
        if texts["by"] not in BY:
            raise wrong("by", "words, meaning or both")
        return cls(**texts, where=where, start=int(start))

    @property
    def is_search(self) -> bool:
        return bool(self.q or self.minus or self.like or self.image)

    @property
    def is_filtered(self) -> bool:
        return bool(self.after or self.before or self.conditions or self.near)

    @property
    def is_open(self) -> bool:
        """Whether anything is set that the form shows only when it is opened."""
        return bool(self.by or self.minus or self.least or self.is_filtered)

    def url(self, **changes: Any) -> str:
        """The URL of this page, with `changes`."""
        other = replace(self, **changes) if changes else self
        values = {field.name: value for field in fields(other) if (value := getattr(other, field.name))}
        return "/?" + urlencode(values, doseq=True) if values else "/"

    def cleared(self) -> "Wanted":
        """The search without what limits it."""
        return Wanted(self.q, self.by, like=self.like, image=self.image)

    @property
    def conditions(self) -> list[str]:
        """The conditions on fields, as `--where` takes them. Raises ApiError."""
        found = list(self.where)
        if self.camera:
            found.append(f"camera={self.camera}")
        if self.path:
            found.append(f"image~{self.path if set(self.path) & set('*?[') else f'*{glob.escape(self.path)}*'}")
        return found

    @property
    def place(self) -> Near | None:
        """The place and how far from it. Raises ApiError."""
        if not self.near:
            return None
        within = _number(self.within, "within", "a number of kilometres") if self.within else NEAR
        try:
            return parse_near(f"{self.near},{within}")
        except VlmkitError:
            raise wrong("near", "a latitude and a longitude in degrees, such as 48.2,16.4, and kilometres") from None

    @property
    def times(self) -> tuple[float | None, float | None]:
        """The times, in seconds since 1970, from which on and before which. Raises ApiError."""
        return _day(self.after, "after", end=False), _day(self.before, "before", end=True)

    @property
    def min_score(self) -> float | None:
        return _number(self.least, "least", "a score such as 0.2") if self.least else None


def picture_url(key: str, **parameters: str) -> str:
    """The URL of the page of one picture."""
    return _url("/picture", key, parameters)


def file_url(kind: str, key: str, version: str = "") -> str:
    """The URL of a picture itself; `kind` is thumbnail, large or original."""
    return _url(f"/{kind}", key, {"v": version})


def _url(path: str, key: str, parameters: Mapping[str, str]) -> str:
    return f"{path}?" + urlencode({"id": key} | {name: value for name, value in parameters.items() if value})


def wrong(name: str, expected: str) -> ApiError:
    return ApiError(400, f"{name} is not {expected}", code="invalid_value", param=name)


def listed(text: str) -> Sequence[str]:
    return [text] if text else []


def _number(text: str, name: str, expected: str) -> float:
    try:
        found = float(text)
    except ValueError:
        raise wrong(name, expected) from None
    if not math.isfinite(found):
        raise wrong(name, expected)
    return found


def _day(text: str, name: str, *, end: bool) -> float | None:
    """The begin of a year, a month or a day in local time; with `end` that of the one after it."""
    if not text:
        return None
    try:
        year, month, day = (*map(int, text.split("-")), 0, 0)[:3] if len(text) <= len("0000-00-00") else (0, 0, 0)
        if end:
            year, month, day = (year, month, day + 1) if day else (year, month + 1, 0) if month else (year + 1, 0, 0)
            year, month = (year + 1, 1) if month > 12 else (year, month)
        first = datetime(year, month or 1, 1).timestamp()
        if not day:
            return first
        before = datetime(year, month, day - 1 if end else day)  # checks that there is such a day
        return datetime.fromordinal(before.toordinal() + end).timestamp()
    except (ValueError, OverflowError, OSError):
        raise wrong(name, "a date such as 2024, 2024-06 or 2024-06-30") from None
