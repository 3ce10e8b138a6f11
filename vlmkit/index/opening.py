"""Open what -i names: a folder, several of them, or a vector store."""

from collections.abc import Sequence
from contextlib import ExitStack

from vlmkit.errors import VlmkitError
from vlmkit.index.base import VectorIndex
from vlmkit.index.parts import Parts
from vlmkit.index.reader import Index
from vlmkit.index.store import index_folder
from vlmkit.index.vector_stores import is_elsewhere
from vlmkit.index.vector_stores.base import load_store


def open_index(names: Sequence[str]) -> VectorIndex:
    """The index of these names, several folders as one. Raises NoIndex, VlmkitError."""
    elsewhere = next(filter(is_elsewhere, names), None)
    if elsewhere and len(names) > 1:
        what = f"{elsewhere} cannot be searched together with other indexes"
        raise VlmkitError(what, f"copy them there: vlmkit index -i INDEX --to {elsewhere}")
    if elsewhere:
        store, address = load_store(elsewhere)
        return store(address)
    with ExitStack() as opened:
        parts: list[Index] = []
        for folder in map(index_folder, names):
            parts.append(opened.enter_context(Index(folder)))
            if any(part.folder.samefile(folder) for part in parts[:-1]):
                raise VlmkitError(f"the index at {folder} is named twice", "leave out one of them")
        index = parts[0] if len(parts) == 1 else Parts(parts)
        opened.pop_all()  # from here on the index closes them
    return index
