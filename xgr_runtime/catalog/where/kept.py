"""Expressions that were evaluated for one catalog, kept for the next request with the same text."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from xgr_runtime.catalog.where.live import LiveRows, live_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from xgr_runtime.catalog.attributes import AttributeColumn

    Int32 = NDArray[np.int32]


class KeptFilters:
    """The least recently used go first, once all take more than `most_bytes`. For several threads.

    hits, misses: how often `left_by` found an expression here, and how often it did not.
    """

    def __init__(
        self, columns: Mapping[str, AttributeColumn], item_lo: Int32, leaf_of_row: Int32, most_bytes: int
    ) -> None:
        self._columns = columns
        self._item_lo, self._leaf_of_row = item_lo, leaf_of_row
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, LiveRows] = OrderedDict()
        self._shelf = Lock()  # held for moments
        self._turn = Lock()  # held while an expression is evaluated: who waits for it may want the same one
        self.held_bytes = 0
        self.hits = 0
        self.misses = 0

    def __contains__(self, text: str) -> bool:
        """Whether the expression needs no evaluation now."""
        return text in self._kept

    def left_by(self, text: str) -> LiveRows:
        """What the expression leaves. Raises BadRequest naming a position of the text."""
        if (found := self._find(text)) is not None:
            return found
        with self._turn:
            if (found := self._find(text)) is not None:
                return found
            self.misses += 1
            live = live_rows(text, self._columns, self._item_lo, self._leaf_of_row)
            self._keep(live)
            return live

    def _find(self, text: str) -> LiveRows | None:
        with self._shelf:
            found = self._kept.get(text)
            if found is not None:
                self._kept.move_to_end(text)
                self.hits += 1
            return found

    def _keep(self, live: LiveRows) -> None:
        """One that is larger than all that may be kept is not."""
        with self._shelf:
            if live.nbytes > self._most_bytes:
                return
            self._kept[live.text] = live
            self.held_bytes += live.nbytes
            while self.held_bytes > self._most_bytes:
                self.held_bytes -= self._kept.popitem(last=False)[1].nbytes
