"""HTML from the folder `templates`, and the files of the folder `static`, by their content."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from vlmkit.errors import VlmkitError
from vlmkit.io.sources import content_hash
from vlmkit.serve.errors import ApiError, explained
from vlmkit.serve.page.state import Page
from vlmkit.serve.page.wanted import Wanted, file_url, picture_url

if TYPE_CHECKING:
    from jinja2 import Environment

Handler = Callable[[Page, Request], Awaitable[Response]]
HERE = Path(__file__).parent
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
YEAR = 31_536_000


def html(template: str, status: int = 200, **values: Any) -> Response:
    """The page made of `template`; text in `values` is escaped."""
    text = environment().get_template(template).render(values)
    # Under no-referrer browsers send the forms of a page with the Origin null.
    headers = {
        "Content-Security-Policy": POLICY,
        "Referrer-Policy": "same-origin",
        "Cache-Control": "private, no-cache",
    }
    return Response(text.encode(errors="backslashreplace"), status, headers, "text/html")


def in_html(handler: Handler) -> Handler:
    """`handler`, whose errors are pages too."""

    async def answer(page: Page, request: Request) -> Response:
        try:
            return await handler(page, request)
        except (ApiError, VlmkitError) as error:
            told = error if isinstance(error, ApiError) else explained(error)
            return html("error.html", told.status, error=told, wanted=Wanted(), settings=page.service.settings)

    return answer


@cache
def environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(HERE / "templates")
    made = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    made.globals |= {"static": static_url, "file_url": file_url, "picture_url": picture_url}
    made.filters |= {
        "bytes": as_bytes,
        "count": "{:,}".format,
        "when": as_time,
        "sentence": lambda text: text[:1].upper() + text[1:],
    }
    return made


@cache
def static_files() -> dict[str, tuple[bytes, str]]:
    """The content and its hash, by name."""
    files = {path.name: path.read_bytes() for path in sorted((HERE / "static").iterdir()) if path.suffix in MEDIA_TYPES}
    return {name: (data, content_hash(data)[:16]) for name, data in files.items()}


def static_url(name: str) -> str:
    return f"/static/{name}?v={static_files()[name][1]}"


async def static(_: Page, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in static_files():
        raise ApiError(404, "there is no such file")
    data, version = static_files()[name]
    is_this = request.query_params.get("v") == version
    headers = {"Cache-Control": f"public, max-age={YEAR}, immutable" if is_this else "no-cache", "ETag": f'"{version}"'}
    if version in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=MEDIA_TYPES[Path(name).suffix])


def as_bytes(count: float) -> str:
    """`1.2 MB`"""
    unit = "bytes"
    for larger in ("kB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"


def as_time(time: Any) -> str:
    """Seconds since 1970 or ISO 8601 as a person reads it."""
    try:
        found = datetime.fromisoformat(time) if isinstance(time, str) else datetime.fromtimestamp(time)
    except (ValueError, TypeError, OverflowError, OSError):
        return str(time)
    return f"{found.day} {found:%B %Y, %H:%M}"
