"""Who may ask: the headers Host and Origin, and the token.

A web page of another origin, also one whose name leads to this address (DNS rebinding), can neither read nor send
anything here.
"""

import ipaddress
import re
import socket
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlmkit.serve import session
from vlmkit.serve.errors import ApiError
from vlmkit.serve.settings import Settings, is_loopback, is_wildcard

OPEN = re.compile(r"/health|/login|/static/[^/]+")  # whole paths: for probes, and browsers that have no token yet
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses what may not ask: a wrong Host with 421, a foreign Origin with 403, a wrong token with 401."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._names = {name.lower() for name in (settings.host, *settings.hosts)}
        if is_wildcard(settings.host):
            self._names.add(socket.gethostname().lower())
        self._origins = {origin.lower().rstrip("/") for origin in settings.origins}
        self._token = settings.token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except ApiError as error:
            return await _refusal(error, scope)(scope, receive, send_with_headers)
        await self._app(scope, receive, send_with_headers)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._knows(hosts[0]):
            what = f"this service is not {hosts[0][:100] if hosts else 'without a name'}"
            raise ApiError(421, f"{what}: use its address, or start it with --allow-host", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin, hosts[0]):
            what = "pages of other origins may not send requests here: start the service with --cors to allow one"
            raise ApiError(403, what, code="foreign_origin")
        cross_site = headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate"
        if origin is None and cross_site:
            raise ApiError(403, "pages of other sites may not embed what is here", code="foreign_origin")
        preflight = method == "OPTIONS" and "access-control-request-method" in headers  # brings no token
        if self._token is not None and OPEN.fullmatch(path) is None and not preflight:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            has_token = scheme.lower() == "bearer" and session.is_token(token, self._token)
            if not has_token and not session.is_open(method, headers, self._token):
                what = "the token is missing or wrong: send it as Authorization: Bearer TOKEN"
                raise ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _knows(self, host: str) -> bool:
        """Whether `host`, with or without a port, names this service."""
        try:
            parts = urlsplit(f"//{host}")
            name = parts.hostname or ""
            parts.port  # noqa: B018 raises ValueError for what is none
        except ValueError:
            return False
        if name in self._names or is_loopback(name):
            return True
        try:  # a name can be made to lead anywhere, an address cannot
            return is_wildcard(self._settings.host) and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _is_ours(self, origin: str, host: str) -> bool:
        origin = origin.lower()
        return origin in self._origins or origin in (f"http://{host.lower()}", f"https://{host.lower()}")


def _refusal(error: ApiError, scope: Scope) -> Response:
    """The error; for a person without the token the way to where it is asked for."""
    is_page = scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")
    if error.status != 401 or not is_page:
        return error.response()
    query = scope["query_string"].decode("latin-1")
    target = quote(f"{scope['path']}?{query}" if query else scope["path"], safe="/")
    return RedirectResponse("/login" if target == "/" else f"/login?next={target}", 303)
