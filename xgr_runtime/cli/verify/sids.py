"""Which SIDs the catalog holds, asked of its sorted table: not of the trie that is searched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xgr_runtime.cli.verify.terms import Sid


class SidTable:
    """sids int32 [leaves, depth], sorted."""

    def __init__(self, sids: NDArray[np.int32]) -> None:
        self.leaves, self.depth = sids.shape
        self._columns = [np.ascontiguousarray(sids[:, level]) for level in range(self.depth)]

    def holds(self, sid: Sid) -> bool:
        """Whether it is the SID of an item."""
        first, last = self._span(sid)
        return len(sid) == self.depth and first < last

    def leaf(self, sid: Sid) -> int:
        """Its row, where it holds that SID."""
        return self._span(sid)[0]

    def children(self, prefix: Sequence[int]) -> NDArray[np.int32]:
        """The tokens that may follow, sorted; none behind what is no prefix of a SID."""
        first, last = self._span(prefix)
        return np.unique(self._columns[len(prefix)][first:last])

    def level(self, level: int) -> NDArray[np.int32]:
        """The tokens that the catalog uses at a level, sorted."""
        return np.unique(self._columns[level])

    def _span(self, prefix: Sequence[int]) -> tuple[int, int]:
        """The rows that begin so."""
        first, last = 0, self.leaves
        for column, token in zip(self._columns, prefix, strict=False):
            part = column[first:last]
            left, right = (int(np.searchsorted(part, token, side)) for side in ("left", "right"))
            first, last = first + left, first + right
        return first, last
