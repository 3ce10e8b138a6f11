"""The page over the index: routes that `vlmkit.serve.app` adds to those of the service.

Pages are rendered by the folder `templates`; `static` has their style and their one script. wanted: what a page shows,
as its URL says. catalog: the order of all pictures. browse, detail, duplicates, talk, login: the
pages. files, thumbnails: the pictures in them. The page reads; it writes only its cache.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vlmkit.serve.page import browse, detail, duplicates, files, login, talk
from vlmkit.serve.page.state import Page
from vlmkit.serve.page.view import Handler, in_html, static
from vlmkit.serve.service import Service

GET: dict[str, Handler] = {
    "/": browse.browse,
    "/picture": detail.detail,
    "/duplicates": duplicates.duplicates,
    "/chat": talk.talk,
    "/login": login.login,
}
POST: dict[str, Handler] = {
    "/upload": browse.upload,
    "/duplicates": duplicates.begin,
    "/duplicates/stop": duplicates.stop,
    "/duplicates/script": duplicates.script,
    "/login": login.check,
    "/logout": login.logout,
}
FILES: dict[str, Handler] = {**files.HANDLERS, "/upload": browse.uploaded, "/static/{name}": static}


def routes(service: Service) -> list[Route]:
    """The routes of the page. Its HTML has a Content-Security-Policy of its own."""
    page = Page(service)
    return [
        *(_route(page, path, in_html(handler), "GET") for path, handler in GET.items()),
        *(_route(page, path, in_html(handler), "POST") for path, handler in POST.items()),
        *(_route(page, path, handler, "GET") for path, handler in FILES.items()),
    ]


def _route(page: Page, path: str, handler: Handler, method: str) -> Route:
    async def answer(request: Request) -> Response:
        return await handler(page, request)

    return Route(path, answer, methods=[method])
