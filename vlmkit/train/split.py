"""Which rows are held out: a hash of the id says it, so it never shifts as data grow or are put in another order."""

import hashlib


def share(key: str) -> float:
    """Where `key` falls between 0 and 1, evenly over many keys: 32 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32


def held_out(id: str, fraction: float) -> bool:
    """Whether the row `id` belongs to the `fraction` that is kept for validation."""
    return share(id) < fraction
