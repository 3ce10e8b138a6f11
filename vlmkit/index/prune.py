"""Which records of an index have lost their file."""

import os
from collections import Counter
from functools import cache
from typing import NamedTuple

from vlmkit.errors import VlmkitError
from vlmkit.index.reader import Index
from vlmkit.index.store import parse_record
from vlmkit.io.sources import UnreadContainer, is_gone


class Lost(NamedTuple):
    """`rows` are ids and lines of records that have lost their file. `unread` are containers that could not be read
    whole, each with the number of records of members that were not found in it: nobody knows whether these are lost.
    Under the folders `without` there is no record at all.
    """

    rows: list[tuple[str, bytes | None]]
    unread: Counter[str]
    without: list[str]


def check_folders(folders: list[str]) -> None:
    """Raise VlmkitError for a folder that is missing: it may only not be mounted."""
    for folder in folders:
        if not os.path.exists(folder):
            raise VlmkitError(f"{folder} is missing, so nothing under it is pruned", "mount it, or pass --force")


def lost_records(index: Index, folders: list[str], *, force: bool) -> Lost:
    """The records under `folders` whose file, tar or member of a tar is gone; with `force` also those `unread`.

    Unless you `force`, VlmkitError is raised where these are more than half of the records under one folder, and where
    what is left looks like a drive that is not mounted: a link that leads nowhere, a folder that is there but empty.
    """
    found: dict[str, bytes | None] = {}
    unread: Counter[str] = Counter()
    without = []
    unmounted_place = cache(unmounted)
    for folder in folders:
        root = os.path.join(os.path.abspath(folder), "")
        total, gone = 0, {}
        places: Counter[str] = Counter()
        for slot, key, line in index.lines():
            image = parse_record(line, slot).get("image")
            if isinstance(image, str) and image.startswith(root):
                total += 1
                if _is_lost(image, unread, force=force):
                    gone[key] = line
                    places[dangling(image) if os.path.islink(image) else unmounted_place(os.path.dirname(image))] += 1
        if not total:
            without.append(folder)
        if not force:
            _check_loss(folder, total, len(gone), places)
        found |= gone
    return Lost(list(found.items()), unread, without)


def _is_lost(image: str, unread: Counter[str], *, force: bool) -> bool:
    try:
        return is_gone(image)
    except UnreadContainer as error:
        unread[error.path] += 1
        return force


def _check_loss(folder: str, total: int, gone: int, places: Counter[str]) -> None:
    """Raise VlmkitError where the `gone` of `total` records are too many, or lie in places that may not be mounted."""
    for place, count in places.items():
        if place:
            what = f"the files of {count} of the {total} records under {folder} are missing, as {place}"
            raise VlmkitError(what, "mount it, or pass --force")
    if 2 * gone > total:
        what = f"the files of {gone} of the {total} records under {folder} are missing, too many to prune"
        raise VlmkitError(what, "check that the folder is complete, then pass --force")


def unmounted(folder: str) -> str:
    """What is wrong with the nearest place above a missing file that is left; nothing where it was merely deleted."""
    if os.path.isdir(folder):
        try:
            return "" if any(not name.startswith(".") for name in os.listdir(folder)) else f"{folder} is empty"
        except OSError as error:
            return f"{folder} cannot be read ({error.strerror})"
    if os.path.islink(folder):
        return dangling(folder)
    return "" if os.path.exists(folder) else unmounted(os.path.dirname(folder))


def dangling(link: str) -> str:
    return f"the link {link} leads to nothing"
