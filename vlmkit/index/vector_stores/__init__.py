"""Indexes outside a folder: vector stores by the scheme of their address, as in `qdrant:URL/COLLECTION`.

A store is one class in one file, with the methods of `base.VectorStore`, and one line in STORES; it is called with what
follows the colon.
"""

import re

from vlmkit.io.registry import Registry

STORES = Registry("vlmkit.vector_stores", {"qdrant": "vlmkit.index.vector_stores.qdrant:Qdrant"})
SCHEME = re.compile(r"([a-z][a-z0-9_+.-]*):")


def is_elsewhere(name: str) -> bool:
    """Whether the name of an index is the address of a vector store."""
    found = SCHEME.match(name)
    return found is not None and found[1] in STORES
