"""A chat with pictures: chosen by the reader, or of the index."""

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from vlmkit.index import Index
from vlmkit.io.records import Record
from vlmkit.serve.errors import ApiError
from vlmkit.serve.page.browse import Tile, tiles
from vlmkit.serve.page.state import Page
from vlmkit.serve.page.view import html
from vlmkit.serve.page.wanted import Wanted

EXAMPLES = 8


async def talk(page: Page, request: Request) -> Response:
    """With `id` in the URL that picture is shown first."""
    key = request.query_params.get("id")
    shown = tiles([await page.record(key)]) if key else []
    return html(
        "chat.html",
        settings=page.service.settings,
        wanted=Wanted(),
        shown=[tile for tile in shown if tile.thumbnail],
        examples=await _examples(page),
        models=page.chat_models,
    )


async def _examples(page: Page) -> list[Tile]:
    """Pictures of the index, evenly spaced in time; none without an index."""

    def some(index: Index) -> list[Record]:
        return [record for slot in chosen if (record := index.get_slot(slot)) is not None]

    try:
        order = (await page.catalog()).slots
    except ApiError:
        return []
    places = np.linspace(0, max(0, len(order) - 1), min(len(order), EXAMPLES)).astype(np.int64)
    chosen = order[places].tolist()
    return [tile for tile in tiles(await page.look(some)) if tile.thumbnail]
