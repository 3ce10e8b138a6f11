"""Why a request to an endpoint failed: the provider's own words, whom it concerns, and how long to wait."""

import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from vlmkit.io.http import http_date
from vlmkit.io.records import loads

LATER = "ask again later"
OTHER_REQUEST = "change the question or the picture"
TRANSIENT = {408, 409, 425, 429, *range(500, 600)} - {501, 505}
# Where servers and gateways put their words, the most general first.
WORDS = ("error", "errors", "message", "msg", "error_message", "error_msg", "error_description", "detail", "metadata")
DEEPER = ("raw", "reasons", "cause", "innererror", "inner_error", "upstream", "provider_error")
WAITS = {"retrydelay": 1.0, "retryafter": 1.0, "retryafterseconds": 1.0, "retryafterms": 0.001}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|milliseconds?|h|hours?|m|min|minutes?|s|secs?|seconds?)(?![a-z])", re.I)
UNITS = {"ms": 0.001, "milli": 0.001, "h": 3600.0, "m": 60.0, "s": 1.0}  # by how a unit begins
ASKED_WAIT = re.compile(r"(?:again|retry|wait)\D{0,20}((?:\d+(?:\.\d+)?\s*[a-z]+\s*)+)", re.I)
EPOCH = 1e9  # seconds since 1970; less is a duration


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


FLAGGED = _words(
    r"moderat|flagged|content.{0,3}(polic|filter|management)|safety|responsible.?ai|violat|inappropriate|prohibited"
    r"|harmful|sensitive|nsfw|guardrail|inspection"
)
KEY = _words(
    r"api[ _-]?key|authenticat|unauthori[sz]ed|credential|(access|auth|bearer|invalid|expired)[ _-]token|no auth"
    r"|incorrect key|invalid key|token (is |has )?(expired|invalid)"
)
BALANCE = _words(r"insufficient.(quota|balance|credit|funds)|billing|payment|credit balance")
NO_VISION = _words(
    r"(image|vision|multi-?modal|picture)\w*( inputs?| contents?| urls?)? (is |are )?(not|un)[ -]?support"
    r"|(not|n't|no) (support|accept)\w* (any )?(image|vision|multi-?modal|picture)|not a (multi-?modal|vision)|mmproj"
    r"|variant `?image_url|image_url.{0,60}only|at most 0 image|support image input|data required for image"
    r"|content must be a string"
)
ONE_REQUEST = _words(
    r"context.(length|window|size)|maximum context|too (long|large|big)|larger than|exceed|dimension|resolution"
    r"|(invalid|corrupt|valid|decode|load|process)\w* .{0,20}(image|picture)"
)
PLACE = _words(
    r"(unexpected|unknown|invalid|no such) (endpoint|url|path|route|model)|cannot (post|get) /|not a valid model"
    r"|model.{0,80}(not (found|exist|available)|does(n't| not) exist)|no models? (is |are )?loaded"
    r"|\A(404:? )?not found\.?\Z"
)
PERMISSION = _words(r"permission|not allowed|access|region|country|territor|location|disabled|suspended|limit|verified")
GENERAL = _words(
    r"internal|server error|had an error|again|overload|temporar|unavailable|busy|time.?out|timed|capacity|loading"
    r"|connect|memory|no luck"
)
ABOUT_SETTINGS = _words(
    r"param|argument|field|support|recogni[sz]|permitted|unknown|allowed|invalid|unavailable|must be"
)
SCHEMA = _words(r"response.?(format|schema)|json.?(schema|mode)|structured.?output|guided|grammar")


class Scope(Enum):
    """Whom a failure concerns: this request, every one, or nobody knows before others were answered."""

    ONE = "one"
    ALL = "all"
    UNKNOWN = "unknown"


@dataclass
class Failure(Exception):
    """`what` failed, with the `status` and the `reason` of the server, and the `remedy`.

    `wait` are the seconds to wait before another try, 0 where the server does not say, None where none would help.
    """

    what: str
    remedy: str
    scope: Scope = Scope.UNKNOWN
    wait: float | None = None
    status: int = 0
    reason: str = ""

    def stays(self) -> bool:
        """Whether the server gives a particular reason, which the next try will meet, too, if it met the last one."""
        return self.status == 500 and not GENERAL.search(self.reason)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that is no answer: `settings` are those that were sent, `pictures` whether any were."""

    status: int
    body: Any
    reason: str
    headers: Mapping[str, str]
    settings: Collection[str]
    pictures: bool

    def failure(self, place: str, name: str, key_remedy: str) -> Failure:
        """What it means for a request to the model `name` of the endpoint at `place`."""
        scope, remedy, wait = self._meaning(name, key_remedy)
        said = f"answers: {self.reason}" if self.status == 200 else f"answers {self.status}, {self.reason}".rstrip(", ")
        who = place if scope is Scope.ALL else "the endpoint"
        return Failure(f"{who} {said}", remedy, scope, wait, self.status, self.reason)

    def _meaning(self, name: str, key_remedy: str) -> tuple[Scope, str, float | None]:
        status, reason, codes = self.status, self.reason, " ".join(_codes(self.body))
        if status != 401 and status < 500 and FLAGGED.search(reason):
            return Scope.ONE, OTHER_REQUEST, None
        if status == 401 or (status != 429 and KEY.search(f"{reason} {codes}")):
            return Scope.ALL, key_remedy, None
        if status == 402 or "insufficient_quota" in codes or (status in (400, 403) and BALANCE.search(reason)):
            return Scope.ALL, "check the balance of that key's account", None
        if self.pictures and NO_VISION.search(reason):
            return Scope.ALL, "name a model that takes pictures, or start its server with the vision part", None
        if setting := self._setting():
            return Scope.ALL, f"change it, or leave it out with --option {setting}=null", None
        if status in (404, 405) or (status < 500 and PLACE.search(reason)):
            return Scope.ALL, f"check the model's name, {name}, and --base-url, which usually ends in /v1", None
        if status in TRANSIENT:
            return Scope.UNKNOWN, LATER, wait_of(self.headers, self.body, reason)
        if status == 413 or ONE_REQUEST.search(reason):
            return Scope.ONE, OTHER_REQUEST, None
        if status == 403:
            scope = Scope.ALL if PERMISSION.search(reason) else Scope.UNKNOWN
            return scope, f"{key_remedy}, and what it may use; or {OTHER_REQUEST}", None
        return Scope.UNKNOWN, LATER if status == 200 else OTHER_REQUEST, None

    def _setting(self) -> str | None:
        """The setting that is refused, if it is one: by its name in `param`, or in words about parameters."""
        if self.status not in (400, 422):
            return None
        params = {param.split(".")[0] for param in _codes(self.body, ("param",))}
        named = next((setting for setting in self.settings if setting in params), None)
        if named is not None or re.search(r"context|input|prompt", self.reason, re.IGNORECASE):
            return named
        written = [key for key in self.settings if re.search(rf"(?<!\w){re.escape(key)}(?!\w)", self.reason)]
        return written[0] if written and ABOUT_SETTINGS.search(self.reason) else None


def reason_of(body: Any) -> str:
    """The words of a server in the body of an error: JSON in any of the usual forms, JSON inside of a text, or text.

    Web pages have none.
    """
    found: list[str] = []
    for text in map(str.strip, _texts(body)):
        if text and not text.startswith("<") and not any(text in other for other in found):
            found.append(text)
    return ": ".join(found).rstrip(".")


def _texts(body: Any) -> Iterator[str]:
    if isinstance(body, str):
        inner = None
        if body.lstrip()[:1] in ("{", "["):
            try:
                inner = loads(body.encode())
            except ValueError:
                inner = None
        yield from _texts(inner) if isinstance(inner, dict | list) else [body]
    elif isinstance(body, list):
        for part in body:
            yield from _texts(part)
    elif isinstance(body, dict):
        if isinstance(place := body.get("loc"), list) and "msg" in body:  # FastAPI
            yield f"{'.'.join(map(str, place))}: {body['msg']}"
            return
        for key in (*WORDS, *DEEPER):
            if key in body:
                yield from _texts(body[key])


def _codes(body: Any, keys: Collection[str] = ("code", "type", "status", "reason")) -> Iterator[str]:
    """The short words for programs in the body of an error."""
    if isinstance(body, list):
        for part in body:
            yield from _codes(part, keys)
    elif isinstance(body, dict):
        yield from (str(body[key]) for key in keys if isinstance(body.get(key), str | int))
        for part in body.values():
            yield from _codes(part, keys)


def status_in(body: Any) -> int | None:
    """The HTTP status that the body of an error names."""
    codes = (code for code in _codes(body, ("code", "status", "status_code")) if code.isdecimal())
    return next((int(code) for code in codes if 400 <= int(code) < 600), None)


def wait_of(headers: Mapping[str, str], body: Any, reason: str) -> float:
    """The seconds that a server asks to wait, in its headers, its body or its words; 0 where it does not say."""
    named = {key.lower(): value for key, value in headers.items()}
    if (seconds := _number(named.get("retry-after-ms"))) is not None:
        return seconds / 1000
    if (seconds := _seconds(named.get("retry-after"))) is not None:
        return seconds
    if waits := list(_waits(body)):
        return max(waits)
    if match := ASKED_WAIT.search(reason):
        return _seconds(match[1]) or 0.0
    return _until_reset(named)


def _waits(body: Any) -> Iterator[float]:
    for key, value in body.items() if isinstance(body, dict) else ():
        name = re.sub(r"[_-]", "", str(key).lower())
        if name in WAITS and (seconds := _seconds(str(value))) is not None:
            yield seconds * (WAITS[name] if _number(str(value)) is not None else 1.0)
        elif name == "headers" and isinstance(value, dict):
            yield wait_of({k: str(v) for k, v in value.items()}, None, "")
        else:
            yield from _waits(value)
    for part in body if isinstance(body, list) else ():
        yield from _waits(part)


def _until_reset(headers: Mapping[str, str]) -> float:
    """The longest time until one of the limits that are used up is lifted."""
    found = [0.0]
    for name, value in headers.items():
        if "ratelimit" not in name or "reset" not in name:
            continue
        left = headers.get(name.replace("reset", "remaining"))
        if left is None or _number(left) == 0:
            found.append(_seconds(value) or 0.0)
    return max(found)


def _seconds(text: str | None) -> float | None:
    """The seconds from now that a text means: a number, a duration such as 1m2.5s, a time as HTTP or ISO write it."""
    if text is None:
        return None
    text = text.strip()
    if (number := _number(text)) is not None:
        number = number / 1000 if number > 1000 * EPOCH else number
        return max(0.0, number - time.time()) if number > EPOCH else number
    if parts := DURATION.findall(text):
        return sum(
            float(value) * next(UNITS[begin] for begin in UNITS if unit.lower().startswith(begin))
            for value, unit in parts
        )
    try:
        moment = datetime.fromisoformat(text).timestamp()
    except ValueError:
        found = http_date(text)
        if found is None:
            return None
        moment = found
    return max(0.0, moment - time.time())


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d+(?:\.\d+)?", text.strip()) else None
