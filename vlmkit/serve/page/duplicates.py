"""Copies side by side, of which a person chooses those that may go. Nothing here deletes a file."""

from collections import defaultdict

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from vlmkit.errors import VlmkitError
from vlmkit.index import Index
from vlmkit.io.records import Record
from vlmkit.serve.errors import ApiError
from vlmkit.serve.page.copies import Copies
from vlmkit.serve.page.script import WAYS, Choice, path_list, shell_script
from vlmkit.serve.page.state import Page
from vlmkit.serve.page.view import html
from vlmkit.serve.page.wanted import Wanted, file_url, picture_url, wrong

GROUPS = 24  # on a page
THRESHOLD = 0.95


async def duplicates(page: Page, request: Request) -> Response:
    """The form, the search that runs, or some of its groups."""
    start = request.query_params.get("start", "0")
    if not start.isascii() or not start.isdecimal():
        raise wrong("start", "a number of groups")
    copies = page.copies.last
    first = int(start[:9])
    shown = copies.groups[first : first + GROUPS] if copies else []
    return html(
        "duplicates.html",
        settings=page.service.settings,
        wanted=Wanted(),
        copies=copies,
        count=len((await page.catalog()).slots),
        threshold=copies.threshold if copies else THRESHOLD,
        groups=await page.look(lambda index: [_shown(first + i, group, index) for i, group in enumerate(shown)]),
        before=first - GROUPS if first else None,
        after=first + GROUPS if copies and first + GROUPS < len(copies.groups) else None,
    )


def _shown(number: int, group: Record, index: Index) -> Record:
    """A group as the page shows it."""
    keys = {(index.get(key) or {}).get("image"): key for key in reversed(group["ids"])}
    pictures = []
    for i, file in enumerate(group.get("files", ())):
        key = keys.get(file["image"], "")
        links = {"thumbnail": file_url("thumbnail", key), "href": picture_url(key)}
        pictures.append(file | links | {"number": i})
    return {"number": number, "score": group["score"], "why": group.get("why", ""), "pictures": pictures}


async def begin(page: Page, request: Request) -> Response:
    async with request.form(max_files=0, max_fields=8) as form:
        text, path = str(form.get("threshold", THRESHOLD)), str(form.get("path", "")).strip()
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1.0
    if not 0.5 <= threshold <= 1:
        raise wrong("threshold", "a number from 0.5 to 1")
    page.copies.start(threshold, path)
    return RedirectResponse("/duplicates", 303)


async def stop(page: Page, _: Request) -> Response:
    page.copies.stop()
    return RedirectResponse("/duplicates", 303)


async def script(page: Page, request: Request) -> Response:
    """What was chosen, as a file to save: a shell script, or a list of paths."""
    async with request.form(max_files=0, max_fields=100_000) as form:
        copies = page.copies.last
        if copies is None or copies.running or str(copies.number) != form.get("search"):
            raise ApiError(409, "these copies were looked for anew meanwhile: go back and choose again", code="stale")
        choices = _chosen(copies, form)
        way = str(form.get("way", "trash"))
    if not any(choice.files for choice in choices):
        raise ApiError(400, "no picture is chosen: tick those that may go", code="empty")
    try:
        text = shell_script(choices, way) if way in WAYS else path_list(choices)
    except VlmkitError as error:
        raise ApiError(400, str(error), code="invalid_value") from None
    name, kind = ("copies.sh", "text/x-shellscript") if way in WAYS else ("copies.txt", "text/plain")
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text.encode(errors="surrogateescape"), headers=headers, media_type=kind)


def _chosen(copies: Copies, form: FormData) -> list[Choice]:
    """The files that may go, by group. Raises ApiError where nothing of a group would stay."""
    if form.get("all"):
        return [Choice(group["images"][0], group["images"][1:]) for group in copies.groups if group["images"]]
    ticked: dict[int, set[int]] = defaultdict(set)
    for value in form.getlist("go"):
        group, _, picture = str(value).partition(".")
        if not (group.isdecimal() and picture.isdecimal() and int(group) < len(copies.groups)):
            raise ApiError(400, "a choice names no picture", code="invalid_value", param="go")
        ticked[int(group)].add(int(picture))
    choices = []
    for number, going in sorted(ticked.items()):
        images = copies.groups[number]["images"]
        staying = [image for i, image in enumerate(images) if i not in going]
        if not staying:
            what = f"all pictures of group {number + 1} are ticked: leave at least one"
            raise ApiError(400, what, code="invalid_value", param="go")
        choices.append(Choice(staying[0], [image for i, image in enumerate(images) if i in going]))
    return choices
