"""Which pictures a page may show, remembered for the pages after it."""

from collections import OrderedDict

import numpy as np

from vlmkit.index import Index
from vlmkit.index.near import Near
from vlmkit.index.where import Condition, parse_condition
from vlmkit.serve.page.catalog import Catalog, key_of
from vlmkit.serve.page.wanted import Wanted
from vlmkit.serve.search import valid

REMEMBERED = 8
Filtered = tuple[np.ndarray | None, list[str]]


class Filters:
    """The slots that met the last filters. Reading all records for one takes half a second for 100,000."""

    def __init__(self) -> None:
        self._known: OrderedDict[object, Filtered] = OrderedDict()

    def get(self, index: Index, catalog: Catalog, wanted: Wanted) -> Filtered:
        """The slots (ascending), None for all, and what is wrong with conditions that none meets. Raises ApiError."""
        if not wanted.is_filtered:
            return None, []
        key = key_of(index), catalog.key, wanted.times, tuple(wanted.conditions), wanted.place
        if key not in self._known:
            self._known[key] = _filtered(index, catalog, wanted)
        self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        slots, notes = self._known[key]
        return slots, list(notes)


def _filtered(index: Index, catalog: Catalog, wanted: Wanted) -> Filtered:
    after, before = wanted.times
    chosen = np.intersect1d(catalog.between(after, before), index.live(), assume_unique=True)
    conditions: list[Condition | Near] = [
        valid(lambda text=text: parse_condition(text), "where") for text in wanted.conditions
    ]
    if (place := wanted.place) is not None:
        conditions.append(place)
    if not conditions:
        return chosen, []
    met = valid(lambda: index.where(conditions), "where")
    notes = [] if len(met) else valid(lambda: index.explain(conditions), "where")
    return np.intersect1d(chosen, met, assume_unique=True), notes
