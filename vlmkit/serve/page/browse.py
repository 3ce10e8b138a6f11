"""The grid of pictures: what was searched for, best first, or all, newest first."""

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from vlmkit.io.records import Record
from vlmkit.io.sources import PictureError
from vlmkit.search.reference import NOISE, chance, match_of
from vlmkit.serve.errors import ApiError
from vlmkit.serve.page.state import Page
from vlmkit.serve.page.view import html
from vlmkit.serve.page.wanted import PAGE, Wanted, file_url, listed, picture_url
from vlmkit.serve.search import find

if TYPE_CHECKING:
    from markupsafe import Markup

WORDS = ("caption", "captions", "ocr", "text")  # fields that say what is in a picture
SNIPPET = 90  # characters
WORD = re.compile(r"\w{3,}")
COMMON = {"and", "are", "for", "from", "the", "with"}  # words that are not looked for


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture in the grid."""

    key: str
    name: str
    alt: str
    href: str
    like: str
    thumbnail: str | None
    score: float | None
    match: str | None
    words: "Markup | None"


async def browse(page: Page, request: Request) -> Response:
    wanted = Wanted.of(request.query_params)
    begin = time.perf_counter()
    catalog = await page.catalog()
    if not len(catalog.slots):
        raise ApiError(404, f"the index at {page.service.settings.index} is empty", code="no_index")
    among, notes = await page.look(lambda index: page.filters.get(index, catalog, wanted))
    if wanted.is_search:
        records, more = await _found(page, wanted, among, len(catalog.slots))
        notes += more
        total = len(catalog.slots) if among is None else len(among)
        is_last = len(records) < PAGE
    else:
        order = catalog.slots if among is None else catalog.slots[np.isin(catalog.slots, among)]
        some = order[wanted.start : wanted.start + PAGE].tolist()
        found = await page.look(lambda index: [index.get_slot(slot) for slot in some])
        records = [record for record in found if record is not None]
        total, is_last = len(order), wanted.start + PAGE >= len(order)
    return html(
        "browse.html",
        settings=page.service.settings,
        wanted=wanted,
        catalog=catalog,
        tiles=tiles(records, wanted.q),
        notes=notes,
        total=total,
        milliseconds=1000 * (time.perf_counter() - begin),
        following=None if is_last else wanted.url(start=wanted.start + PAGE),
    )


def tiles(records: Iterable[Record], q: str = "") -> list[Tile]:
    return [_tile(record, q) for record in records]


def _tile(record: Record, q: str) -> Tile:
    key, image = str(record["id"]), record.get("image")
    name = os.path.basename(str(image or key)) or key
    texts = list(texts_of(record))
    return Tile(
        key,
        name,
        texts[0] if texts and ("caption" in record or "captions" in record) else name,
        picture_url(key, q=q),
        Wanted(like=key).url(),
        file_url("thumbnail", key, version_of(record)) if isinstance(image, str) else None,
        record.get("score"),
        record.get("match"),
        _snippet(texts, q),
    )


def version_of(record: Record) -> str:
    """What changes with the file."""
    return str(record.get("hash") or record.get("mtime") or "")[:16]


def texts_of(record: Record) -> Iterable[str]:
    """What is said of a picture, and written in it."""
    for field in WORDS:
        value = record.get(field)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text


def marked(text: str, q: str) -> "Markup":
    """`text` with the words of `q` marked."""
    from markupsafe import Markup, escape

    words = sorted({word.lower() for word in WORD.findall(q)} - COMMON, key=len, reverse=True)
    if not words:
        return escape(text)
    parts = re.split(rf"(?<!\w)({'|'.join(map(re.escape, words))})(?!\w)", text, flags=re.IGNORECASE)
    pieces: list[Any] = [Markup("<mark>{}</mark>").format(part) if i % 2 else part for i, part in enumerate(parts)]
    return Markup().join(pieces)


def _snippet(texts: Sequence[str], q: str) -> "Markup | None":
    """The part of the first text in which a word of `q` stands."""
    for text in texts:
        line = " ".join(text.split())
        shown = marked(line, q)
        if (place := str(shown).find("<mark>")) >= 0:
            start = max(0, min(place - SNIPPET // 3, len(line) - SNIPPET))
            return marked(("…" if start else "") + line[start : start + SNIPPET], q)
    return None


async def _found(page: Page, wanted: Wanted, among: np.ndarray | None, count: int) -> tuple[list[Record], list[str]]:
    """The hits, and what there is to say of them; the first ones have `match`, if words were searched for."""
    body = {
        "query": listed(wanted.q),
        "by": wanted.by or None,
        "minus": listed(wanted.minus),
        "like": listed(wanted.like),
        "image": [page.uploads.data_uri(wanted.image)] if wanted.image else [],
        "k": PAGE,
        "offset": wanted.start,
        "min_score": wanted.min_score,
    }
    judged = bool(wanted.q) and not (wanted.start or wanted.like or wanted.image)
    records, notes = await find(page.service, body, lambda index: among, judged=judged)
    scores = [record.pop("relative") for record in records if "relative" in record]
    for record, score in zip(records, scores, strict=False):
        if "match_line" not in record:
            record["match"] = match_of(score, count)
    is_said = any(_snippet(list(texts_of(record)), wanted.q) for record in records)
    if scores and chance(max(scores), count) > NOISE and not is_said:
        notes.append("no match is better than chance would find: try other words, there may be nothing like it")
    return records, notes


async def upload(page: Page, request: Request) -> Response:
    """Take the picture of a form, and go on to what is like it."""
    async with request.form(max_files=1, max_fields=20) as form:
        given = form.get("picture")
        if not isinstance(given, UploadFile) or not given.size:
            raise ApiError(400, "there is no picture: choose one", code="missing_input", param="picture")
        data = await given.read()
    try:
        name = await page.in_thread(lambda: page.uploads.add(data))
    except PictureError as error:
        raise ApiError(400, f"the picture cannot be used: {error}", code="invalid_image", param="picture") from None
    return RedirectResponse(Wanted(image=name).url(), 303)


async def uploaded(page: Page, request: Request) -> Response:
    data = page.uploads.get(request.query_params.get("name", ""))
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})
