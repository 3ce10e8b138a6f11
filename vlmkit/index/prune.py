"""prune: which records of an index have lost their file."""

import os

from vlmkit.errors import VlmkitError
from vlmkit.index.reader import Index
from vlmkit.tars import is_gone_member


def check_folders(folders: list[str], *, force: bool) -> None:
    """Raise VlmkitError for a folder that is missing: it may only not be mounted."""
    for folder in folders:
        if not os.path.exists(folder) and not force:
            raise VlmkitError(f"{folder} is missing, so nothing under it is pruned", "mount it, or say --force")


def lost(index: Index, folders: list[str], *, force: bool) -> list[tuple[str, bytes | None]]:
    """Ids and lines of the records under `folders` whose file, tar or member of a tar is gone.

    Raises VlmkitError where these are more than half of the records under one folder, unless you `force`.
    """
    found: dict[str, bytes | None] = {}
    for folder in folders:
        root = os.path.join(os.path.abspath(folder), "")
        total, gone = 0, {}
        for slot, key, line in index.lines():
            image = index.parsed(line, slot).get("image")
            if isinstance(image, str) and image.startswith(root):
                total += 1
                if _is_gone(image):
                    gone[key] = line
        if 2 * len(gone) > total and not force:
            what = f"{len(gone)} of the {total} records under {folder} have lost their file, too many to be pruned"
            raise VlmkitError(what, "look whether all of it is there, then say --force")
        found |= gone
    return list(found.items())


def _is_gone(image: str) -> bool:
    """Whether there is no such file and no such member of a tar; what cannot be looked at is not gone."""
    try:
        os.stat(image)
        return False
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError):
        return False
    return is_gone_member(image)
