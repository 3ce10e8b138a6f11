"""Who may ask: the headers Host and Origin, and the token.

A web page of another origin, also one whose name leads to this address (DNS rebinding), can neither read nor send
anything here.
"""

import hmac
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlmkit.serve.errors import ApiError
from vlmkit.serve.settings import Settings, is_loopback, is_wildcard

OPEN = ("/health",)  # for probes, which have no token
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
        self._token = None if settings.token is None else settings.token.encode()

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
            return await error.response()(scope, receive, send_with_headers)
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
        if self._token is not None and path not in OPEN and not preflight:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
                what = "the token is missing or wrong: send it as Authorization: Bearer TOKEN"
                raise ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _knows(self, host: str) -> bool:
        """Whether `host`, with or without a port, names this service."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
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
