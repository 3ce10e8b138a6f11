"""Check every invariant of an index."""

import numpy as np

from vlmkit.index.reader import Index
from vlmkit.index.store import damaged, index_errors, parse_record, read_live
from vlmkit.index.words import check_words

ROWS = 10_000
NORM_TOLERANCE = 5e-3  # float16 rounds each of the D numbers


def verify(index: Index) -> None:
    """Raise VlmkitError with the first invariant that does not hold."""
    with index_errors(index.folder):
        (answer,) = index.db.execute("PRAGMA integrity_check").fetchone()
        if answer != "ok":
            raise damaged(index.folder, answer)
        live = np.flatnonzero(read_live(index.db, index.state))
        slots = np.fromiter((slot for (slot,) in index.db.execute("SELECT slot FROM records ORDER BY slot")), np.int64)
        if len(slots) != len(index) or not np.array_equal(slots, live):
            raise damaged(index.folder, "its slots, live slots and number of records differ")
        for start in range(0, len(live), ROWS):
            slots = live[start : start + ROWS]
            norms = np.linalg.norm(index.vectors[slots].astype(np.float32), axis=1)
            wrong = slots[~(np.abs(norms - 1) < NORM_TOLERANCE)]
            if len(wrong):
                raise damaged(index.folder, f"the vector in slot {wrong[0]} is not a unit vector")
        for slot, key, line in index.lines():
            if str(parse_record(line, slot).get("id")) != key:
                raise damaged(index.folder, f"the record in slot {slot} has another id")
        check_words(index, live)
        if index.ann:
            index.ann.check(thorough=True)
            index.ann.load(index.state.dim)
