"""The rows that a condition lets live, and from them the leaves: a leaf lives if any of its rows does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xgr_kernels.trie import LeafFilter, filter_of_bits
from xgr_runtime.catalog.attributes import AttributeColumn
from xgr_runtime.catalog.where.bind import bind
from xgr_runtime.catalog.where.tree import read_tree
from xgr_runtime.catalog.where.values import PIECE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int32 = NDArray[np.int32]


class LiveRows(NamedTuple):
    """What one expression leaves of one catalog."""

    text: str  # of the expression
    rows: NDArray[np.uint64]  # [ceil(items / 64)], bit i of word i / 64 is row i, 0 past the end
    leaves: LeafFilter

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        shared = self.leaves.bits is self.rows
        arrays = self.rows.nbytes + (0 if shared else self.leaves.bits.nbytes) + self.leaves.rank.nbytes
        return int(arrays) + 4 * len(self.text)

    def living(self, first: NDArray[np.integer], last: NDArray[np.integer]) -> NDArray[np.int64]:
        """How many rows live in each range [first, last) [N], none of which is empty."""
        lengths = (last - first).astype(np.int64)
        begins = np.cumsum(lengths) - lengths
        rows = np.repeat(first - begins, lengths) + np.arange(int(lengths.sum()))
        return np.add.reduceat(self.holds(rows), begins, dtype=np.int64)

    def holds(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of these rows [N] live."""
        found: NDArray[np.bool_] = (self.rows[rows >> 6] >> (rows & 63).astype(np.uint64)) & np.uint64(1) == 1
        return found


def check_where(text: str, columns: Mapping[str, AttributeColumn]) -> None:
    """Raises BadRequest for what is no condition over these columns; reads no row."""
    bind(read_tree(text), columns)


def live_rows(
    text: str, columns: Mapping[str, AttributeColumn], item_lo: Int32, leaf_of_row: Int32
) -> LiveRows:
    """Rows in which the condition is true, neither false nor NULL, and their leaves.

    item_lo [leaves + 1]: the first row of each leaf; leaf_of_row [items].
    Raises BadRequest naming a position of the text.
    """
    run = bind(read_tree(text), columns)
    items, leaves = int(item_lo[-1]), len(item_lo) - 1
    rows = np.zeros(-(-items // 64), np.uint64)
    octets = rows.view(
        np.uint8
    )  # the lowest bit of the lowest byte first: this runs on little-endian machines
    for first in range(0, items, PIECE):
        last = min(first + PIECE, items)
        true = np.broadcast_to(run(first, last).values, last - first)
        octets[first >> 3 : -(-last >> 3)] = np.packbits(true, bitorder="little")
    if leaves == items:
        return LiveRows(text, rows, filter_of_bits(rows))
    alive = _alive(np.unpackbits(octets, count=items, bitorder="little").view(np.bool_), item_lo, leaf_of_row)
    bits = np.zeros(-(-leaves // 64), np.uint64)
    bits.view(np.uint8)[: -(-leaves // 8)] = np.packbits(alive, bitorder="little")
    return LiveRows(text, rows, filter_of_bits(bits))


def _alive(rows: NDArray[np.bool_], item_lo: Int32, leaf_of_row: Int32) -> NDArray[np.bool_]:
    """Which leaves [leaves] have a live row: of live rows if they are few, else by each leaf's first rows.

    Most leaves have few rows, so first, second and third ones leave ever fewer leaves to look at.
    """
    if np.count_nonzero(rows) * 8 < len(rows):
        few = np.zeros(len(item_lo) - 1, np.bool_)
        few[leaf_of_row[rows]] = True
        return few
    first, last = item_lo[:-1], item_lo[1:]
    alive: NDArray[np.bool_] = rows[first]
    dead = np.flatnonzero(~alive)
    for further in range(1, 8):
        dead = dead[last[dead] - first[dead] > further]
        if not len(dead):
            return alive
        found = rows[first[dead] + further]
        alive[dead[found]] = True
        dead = dead[~found]
    before = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(rows, out=before[1:])
    alive[dead] = before[last[dead]] > before[first[dead]]
    return alive
