"""verify: every invariant of an index."""

import sqlite3
from typing import TYPE_CHECKING

from vlmkit.index.store import damaged, read_live

if TYPE_CHECKING:
    from vlmkit.index.reader import Index

ROWS = 10_000
NORM_TOLERANCE = 5e-3  # float16 rounds each of the D numbers


def verify(index: "Index", db: sqlite3.Connection) -> None:
    """Raise VlmkitError with the first invariant that does not hold."""
    (answer,) = db.execute("PRAGMA integrity_check").fetchone()
    if answer != "ok":
        raise damaged(index.folder, answer)
    _verify_slots(index, db)
    _verify_vectors(index)
    _verify_records(index)
    if index.approximate:
        index.approximate.check(thorough=True)
        index.approximate.opened(index.state.dim)


def _verify_slots(index: "Index", db: sqlite3.Connection) -> None:
    import numpy as np

    slots = np.fromiter((slot for (slot,) in db.execute("SELECT slot FROM records ORDER BY slot")), np.int64)
    live = np.flatnonzero(read_live(db, index.state))
    if len(slots) != len(index) or not np.array_equal(slots, live):
        raise damaged(index.folder, "the slots do not add up")


def _verify_vectors(index: "Index") -> None:
    import numpy as np

    live = index.live()
    for start in range(0, len(live), ROWS):
        slots = live[start : start + ROWS]
        norms = np.linalg.norm(index.vectors[slots].astype(np.float32), axis=1)
        wrong = slots[~(np.abs(norms - 1) < NORM_TOLERANCE)]
        if len(wrong):
            raise damaged(index.folder, f"the vector in slot {wrong[0]} is no unit vector")


def _verify_records(index: "Index") -> None:
    from vlmkit.records import loads

    for slot, key, line in index.lines():
        try:
            record = loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or str(record.get("id")) != key:
            raise damaged(index.folder, f"the record in slot {slot}")
