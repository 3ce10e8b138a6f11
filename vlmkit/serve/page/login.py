"""The token, asked for once in a browser."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from vlmkit.serve import session
from vlmkit.serve.page.state import Page
from vlmkit.serve.page.view import html


async def login(page: Page, request: Request) -> Response:
    """The form; with `token` in the URL, as on the first visit, no more than a way to the page without it."""
    target = _target(request.query_params.get("next"))
    token = page.service.settings.token
    given = request.query_params.get("token")
    if token is None or given is not None:
        return _answer(given or "", token, target)
    return html("login.html", target=target, wrong=False)


async def check(page: Page, request: Request) -> Response:
    async with request.form(max_files=0, max_fields=8) as form:
        given, target = str(form.get("token", "")), _target(str(form.get("next", "")))
    return _answer(given, page.service.settings.token, target)


async def logout(page: Page, _: Request) -> Response:
    response = RedirectResponse("/login", 303)
    if page.service.settings.token:
        session.end(response, page.service.settings.token)
    return response


def _answer(given: str, token: str | None, target: str) -> Response:
    if token is None:
        return RedirectResponse(target, 303)
    if not session.is_token(given, token):
        return html("login.html", 401, target=target, wrong=True)
    response = RedirectResponse(target, 303)
    session.begin(response, token)
    return response


def _target(path: str | None) -> str:
    """Where to go on: a path of this service, and nothing that a browser takes for another one."""
    if not path or not path.startswith("/") or path[1:2] in ("/", "\\") or not path.isprintable():
        return "/"
    return path
