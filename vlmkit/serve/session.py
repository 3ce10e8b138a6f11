"""The token of a service in browsers: a cookie that only its own pages send, and that does not hold the token."""

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.responses import Response

SECONDS = 30 * 86_400
SAFE = ("GET", "HEAD")


def is_token(given: str, token: str) -> bool:
    """Whether they are the same, in constant time."""
    return hmac.compare_digest(given.strip().encode(errors="replace"), token.encode())


def begin(response: Response, token: str) -> None:
    """Give the browser the cookie."""
    response.set_cookie(_name(token), _digest(token), max_age=SECONDS, httponly=True, samesite="strict")


def end(response: Response, token: str) -> None:
    response.delete_cookie(_name(token), httponly=True, samesite="strict")


def is_open(method: str, headers: Headers, token: str) -> bool:
    """Whether a request has the cookie, and comes from a page of this service if it is more than reading."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(_name(token))
    except CookieError:
        return False
    if found is None or not hmac.compare_digest(found.value.encode(), _digest(token).encode()):
        return False
    # A foreign Origin is refused before.
    return method in SAFE or "origin" in headers or headers.get("sec-fetch-site") == "same-origin"


def _digest(token: str) -> str:
    return hmac.digest(token.encode(), b"vlmkit serve: a browser", hashlib.sha256).hex()


def _name(token: str) -> str:
    """Differs between the services of one machine, to all of which a browser sends its cookies."""
    return f"vlmkit-{hmac.digest(token.encode(), b'name', hashlib.sha256).hex()[:12]}"
