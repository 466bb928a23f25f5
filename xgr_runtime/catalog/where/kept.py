"""Expressions that were evaluated for one catalog, kept for the next request with the same text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from xgr_runtime.catalog.where.live import LiveRows, live_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from xgr_runtime.catalog.attributes import AttributeColumn

    Int32 = NDArray[np.int32]


class KeptFilters:
    """The least recently used go first, once their bitmaps take more than `most_bytes` together."""

    def __init__(
        self, columns: Mapping[str, AttributeColumn], item_lo: Int32, leaf_of_row: Int32, most_bytes: int
    ) -> None:
        self._columns = columns
        self._item_lo, self._leaf_of_row = item_lo, leaf_of_row
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, LiveRows] = OrderedDict()
        self.held_bytes = 0
        self.hits = 0
        self.misses = 0

    def find(self, text: str) -> LiveRows | None:
        """What the expression left, if that is kept still."""
        found = self._kept.get(text)
        if found is not None:
            self._kept.move_to_end(text)
            self.hits += 1
        return found

    def evaluate(self, text: str) -> LiveRows:
        """What the expression leaves, kept from now on. Raises BadRequest naming a position of the text."""
        self.misses += 1
        return self.keep(text, live_rows(text, self._columns, self._item_lo, self._leaf_of_row))

    def keep(self, text: str, live: LiveRows) -> LiveRows:
        """Keep what an expression has left. One that is larger than all that may be kept is not."""
        cost = _cost(text, live)
        if text in self._kept or cost > self._most_bytes:
            return live
        self._kept[text] = live
        self.held_bytes += cost
        while self.held_bytes > self._most_bytes:
            old, gone = self._kept.popitem(last=False)
            self.held_bytes -= _cost(old, gone)
        return live


def _cost(text: str, live: LiveRows) -> int:
    return live.nbytes + 4 * len(text)
