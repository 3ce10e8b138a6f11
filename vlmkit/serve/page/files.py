"""The pictures themselves: thumbnails, large ones, and the original bytes, by the id of a record.

No path comes from a request, and what a path of the index leads to by now is sent only if it is a picture.
"""

import email.utils
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from vlmkit.io.images import check_picture
from vlmkit.io.sources import Bytes, Memory, PictureError, content_hash, is_url, open_source
from vlmkit.serve.errors import ApiError
from vlmkit.serve.page.state import Page
from vlmkit.serve.page.thumbnails import etag_of

RANGE = re.compile(r"bytes=(\d*)-(\d*)")
DAY = 86_400
# By how a file begins: what every browser shows.
SHOWN = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
# Without a size of its own, so that it takes the place of the picture.
NOTHING = (
    '<svg xmlns="http://www.w3.org/2000/svg"><rect width="100%" height="100%" fill="#8883"/>'
    '<svg viewBox="0 0 100 100"><path d="M30 35h40v30H30zM30 60l12-12 9 9 7-6 12 11M26 70L74 30" '
    'fill="none" stroke="#888" stroke-width="2"/></svg></svg>'
)


async def thumbnail(page: Page, request: Request) -> Response:
    return await _scaled(page, request, "thumbnail")


async def large(page: Page, request: Request) -> Response:
    return await _scaled(page, request, "large")


async def _scaled(page: Page, request: Request, form: str) -> Response:
    path = await page.image_of(request.query_params.get("id"))

    def work() -> tuple[str, bytes | None]:
        source = open_local(path)
        name = etag_of(path, source, form)
        known = name in request.headers.get("if-none-match", "")
        return name, None if known else page.thumbnails.get(name, source, form)

    try:
        name, data = await page.in_thread(work)
    except PictureError as error:
        return nothing(error)
    fresh = f"private, max-age={DAY}" if request.query_params.get("v") else "private, no-cache"
    headers = {"ETag": f'"{name}"', "Cache-Control": fresh}
    if data is None:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


def nothing(error: PictureError) -> Response:
    """A picture in place of one that is not there; the reason is in a header, for who looks."""
    reason = {"X-Reason": str(error).encode("ascii", "backslashreplace").decode()[:200].replace("\n", " ")}
    return Response(NOTHING, 404, reason, media_type="image/svg+xml")


async def original(page: Page, request: Request) -> Response:
    """The bytes of the file, whole or a range. Those that not every browser shows are saved by it."""
    path = await page.image_of(request.query_params.get("id"))
    try:
        data, modified = await page.in_thread(lambda: _picture(open_local(path)))
    except PictureError as error:
        raise ApiError(404, f"the picture cannot be opened: {error}", code="no_picture") from None
    kind = kind_of(data)
    etag = f'"{content_hash(data)}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Accept-Ranges": "bytes"}
    headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    name = quote(os.path.basename(path), safe="", errors="replace")
    headers["Content-Disposition"] = f"{'inline' if kind else 'attachment'}; filename*=UTF-8''{name}"
    if modified is not None:
        headers["Last-Modified"] = email.utils.formatdate(modified, usegmt=True)
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    media_type = kind or "application/octet-stream"
    wanted = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
    part = part_of(wanted, len(data)) if wanted else None
    if part is None:
        return Response(data, media_type=media_type, headers=headers)
    start, end = part
    if start >= end:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return Response(data[start:end], 206, headers, media_type)


def open_local(path: str) -> Bytes:
    """The picture at `path`; what is elsewhere is not fetched to be looked at. Raises PictureError."""
    if is_url(path):
        raise PictureError("the picture is not on this machine")
    return open_source(path)


def _picture(source: Bytes) -> tuple[bytes, float | None]:
    """The bytes of what is a picture, and when they were changed. Raises PictureError."""
    data = source.read()
    check_picture(Memory(data))
    return data, source.mtime


def kind_of(data: bytes) -> str | None:
    """The media type of a picture that browsers show."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return next((kind for start, kind in SHOWN.items() if data.startswith(start)), None)


def part_of(wanted: str, size: int) -> tuple[int, int] | None:
    """The bytes [start, end) of a header Range; None for one that is not understood, which means all."""
    found = RANGE.fullmatch(wanted.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(0, size - int(found[2])) if int(found[2]) else size, size
    end = min(int(found[2]) + 1, size) if found[2] else size
    return (int(found[1]), end) if not found[2] or int(found[1]) <= int(found[2]) else None


HANDLERS: dict[str, Callable[[Page, Request], Any]] = {
    "/thumbnail": thumbnail,
    "/large": large,
    "/original": original,
}
