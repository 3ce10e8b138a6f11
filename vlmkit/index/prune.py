"""Which records of an index have lost their file."""

import os

from vlmkit.errors import VlmkitError
from vlmkit.index.reader import Index
from vlmkit.index.store import parse_record
from vlmkit.io.sources import is_gone


def check_folders(folders: list[str]) -> None:
    """Raise VlmkitError for a folder that is missing: it may only not be mounted."""
    for folder in folders:
        if not os.path.exists(folder):
            raise VlmkitError(f"{folder} is missing, so nothing under it is pruned", "mount it, or pass --force")


def lost_records(index: Index, folders: list[str], *, force: bool) -> list[tuple[str, bytes | None]]:
    """Ids and lines of the records under `folders` whose file, tar or member of a tar is gone.

    Raises VlmkitError where these are more than half of the records under one folder, unless you `force`.
    """
    found: dict[str, bytes | None] = {}
    for folder in folders:
        root = os.path.join(os.path.abspath(folder), "")
        total, gone = 0, {}
        for slot, key, line in index.lines():
            image = parse_record(line, slot).get("image")
            if isinstance(image, str) and image.startswith(root):
                total += 1
                if is_gone(image):
                    gone[key] = line
        if 2 * len(gone) > total and not force:
            what = f"the files of {len(gone)} of the {total} records under {folder} are missing, too many to prune"
            raise VlmkitError(what, "check that the folder is complete, then pass --force")
        found |= gone
    return list(found.items())
