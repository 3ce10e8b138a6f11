"""What the failures of an endpoint mean: for one request, or for every other as well."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError
from vlmkit.models.chat import Unanswerable

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError

LONGEST_REASON = 300  # characters
LATER = "ask again later"


@dataclass(slots=True)
class Trouble:
    """The trouble with model `name` at `url`, asked with `key`; a try ends after `seconds` of silence.

    `heard` is whether it has answered yet: a server that has is no wrong one, and the key is no wrong key.
    """

    url: str
    name: str
    key: str
    seconds: float
    tries: int
    heard: bool = False

    @asynccontextmanager
    async def told(self, settings: Mapping[str, Any]) -> AsyncIterator[None]:
        """Exceptions of a request with `settings` as Unanswerable, or VlmkitError where every one would meet them."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._refused(error, settings) from None
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from None
        except TimeoutError:
            raise Unanswerable("the endpoint sends something, but comes to no end", LATER) from None
        self.heard = True

    def short(self, text: str) -> str:
        """One line of what the endpoint said, without the key, which it may have repeated."""
        text = " ".join((text.replace(self.key, "***") if self.key else text).split())
        return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "…"

    def _unreachable(self, error: "APIConnectionError") -> Exception:
        import httpx2

        cause = error.__cause__
        silent = isinstance(cause, httpx2.TimeoutException)
        reason = f"silent for {self.seconds:g} s" if silent else self.short(str(cause)) or type(cause).__name__
        what = f"{reason} ({self.tries} tries)"
        if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)) and not self.heard:
            return VlmkitError(f"{self.url} cannot be reached, {what}", "start the server, or check --base-url")
        return Unanswerable(f"the endpoint fails: {what}", LATER)

    def _refused(self, error: "APIStatusError", settings: Mapping[str, Any]) -> Exception:
        status = error.status_code
        reason = self.short(_said(error))
        what = f"{self.url} answers {status}, {reason}"
        if status == 401 or (status == 403 and not self.heard):
            return VlmkitError(what, "check the key, OPENAI_API_KEY" if self.key else "set OPENAI_API_KEY to your key")
        if status == 402 or error.code == "insufficient_quota":
            return VlmkitError(what, "look after the account of that key")
        if status in (404, 405):
            return VlmkitError(what, f"check the model's name, {self.name}, and --base-url, which mostly ends in /v1")
        if status < 400:
            place = self.short(error.response.headers.get("Location", "nowhere"))
            return VlmkitError(f"{self.url} redirects to {place}", "name that with --base-url if you trust it")
        if status in (400, 422) and str(error.param) in settings:
            return VlmkitError(what, f"change it, or leave it out with --option {error.param}=null")
        remedy = LATER if status == 429 or status >= 500 else "change the question or the picture"
        return Unanswerable(f"the endpoint answers {status}, {reason}", remedy)


def _said(error: "APIStatusError") -> str:
    """What the endpoint said, in the forms that are about: OpenAI's, FastAPI's, a text; no web pages."""
    body = error.body
    found = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    said = str(found or "").strip()
    return error.response.reason_phrase if not said or said.startswith("<") else said
