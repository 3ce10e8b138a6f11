"""The file that was probably meant where a name leads nowhere."""

import os
import unicodedata
from functools import lru_cache
from itertools import islice
from urllib.parse import unquote

LOOKED_AT = 100_000  # names of a folder


def similar_path(path: str) -> str | None:
    """What is there under nearly this name: percent-encoded, with backslashes, in another Unicode form or other case.

    Only the parts that do not lead on are looked up in their folders.
    """
    parts = path.replace("\\", "/").split("/") if "\\" in path else path.split("/")
    found = ""
    for number, part in enumerate(parts):
        here = found + part
        if not part or os.path.lexists(here):
            found = here
        elif (name := _names(found or ".").get(_plain(part))) is not None:
            found += name
        else:
            return None
        found += "/" * (number < len(parts) - 1)
    return found if found != path else None


def no_such_file(path: str, what: str = "no such file") -> str:
    """The reason that names what is there instead."""
    near = similar_path(path)
    return what if near is None else f"{what}, but there is {near}"


def _names(folder: str) -> dict[str, str]:
    try:
        return _listed(os.path.abspath(folder), os.stat(folder).st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=32)
def _listed(folder: str, _changed: int) -> dict[str, str]:
    with os.scandir(folder) as entries:
        return {_plain(entry.name): entry.name for entry in islice(entries, LOOKED_AT)}


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", unquote(name)).casefold()
