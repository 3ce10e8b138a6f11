"""One picture: large, with what is known of it, its neighbours, and a place to ask about it."""

import os
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from vlmkit.io.records import Record
from vlmkit.serve.page.browse import marked, texts_of, tiles, version_of
from vlmkit.serve.page.state import Page
from vlmkit.serve.page.view import as_bytes, as_time, html
from vlmkit.serve.page.wanted import Wanted, file_url
from vlmkit.serve.search import find

NEIGHBOURS = 12
NAMES = {"category": "Category", "label": "Label", "page": "Page", "time": "Second"}


async def detail(page: Page, request: Request) -> Response:
    record = await page.record(request.query_params.get("id"))
    key = str(record["id"])
    near, _ = await find(page.service, {"like": key, "k": NEIGHBOURS}, lambda index: None)
    image = record.get("image")
    return html(
        "detail.html",
        settings=page.service.settings,
        wanted=Wanted(q=request.query_params.get("q", "")),
        key=key,
        image=image,
        name=os.path.basename(str(image or key)) or key,
        version=version_of(record),
        size=[record.get("width"), record.get("height")],
        facts=facts(record),
        texts=list(texts_of(record)),
        marked=marked,
        answers=_answers(record),
        fields=_json(record),
        original=file_url("original", key),
        like=Wanted(like=key).url(),
        neighbours=tiles(near),
        models=page.chat_models,
    )


def facts(record: Record) -> dict[str, tuple[str, str | None]]:
    """What a person wants to know of a picture, each by its name, and a link from it."""
    found: dict[str, tuple[str, str | None]] = {}
    if taken := record.get("taken"):
        day = str(taken)[:10]
        found["Taken"] = as_time(taken), Wanted(after=day, before=day).url()
    if camera := record.get("camera"):
        found["Camera"] = str(camera), Wanted(camera=str(camera)).url()
    lat, lon = record.get("lat"), record.get("lon")
    if isinstance(lat, int | float) and isinstance(lon, int | float):
        found["Place"] = f"{lat:.5f}, {lon:.5f}", Wanted(near=f"{lat:.5f},{lon:.5f}").url()
    if record.get("width") and record.get("height"):
        found["Size"] = f"{record['width']} × {record['height']} pixels", None
    if isinstance(size := record.get("bytes"), int | float):
        found["File"] = as_bytes(size), None
    if (changed := record.get("mtime")) is not None:
        found["Changed"] = as_time(changed), None
    if isinstance(image := record.get("image"), str):
        folder = os.path.dirname(image)
        found["Folder"] = folder, Wanted(path=f"{folder}/").url()
    for field, name in NAMES.items():
        if isinstance(value := record.get(field), str | int | float) and not isinstance(value, bool):
            found[name] = str(value), None
    return found


def _answers(record: Record) -> list[tuple[str, str]]:
    """A question of the record and its answer."""
    question, answer = record.get("question"), record.get("answer")
    return [(str(question or ""), str(answer))] if answer else []


def _json(record: Record) -> str:
    shown: dict[str, Any] = {name: value for name, value in record.items() if name != "embedding"}
    return orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode()
