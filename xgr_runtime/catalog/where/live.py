"""The items that a condition lets live, and from them the leaves: a leaf lives if any of its items does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xgr_kernels.trie import LeafFilter
from xgr_runtime.catalog import bits
from xgr_runtime.catalog.attributes import AttributeColumn
from xgr_runtime.catalog.places import LeafPlaces
from xgr_runtime.catalog.where.bind import bind
from xgr_runtime.catalog.where.tree import read_tree
from xgr_runtime.catalog.where.values import PIECE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bits = NDArray[np.uint64]


class ColumnSegment(NamedTuple):
    """The columns of some items that came together: slots [first, first + length)."""

    first: int
    length: int
    columns: Mapping[str, AttributeColumn]


class ItemRows(NamedTuple):
    """What conditions are evaluated over: the items of one version of a catalog, by slot."""

    segments: tuple[ColumnSegment, ...]  # one after the other, the built file's first
    places: LeafPlaces
    visible: Bits | None = None  # [ceil(slots / 64)]; None: every slot is

    @classmethod
    def built(cls, columns: Mapping[str, AttributeColumn], places: LeafPlaces) -> ItemRows:
        """Of a catalog without edits."""
        return cls((ColumnSegment(0, places.slots, columns),), places)


class LiveRows(NamedTuple):
    """What one expression leaves of one version; no expression: what is visible."""

    text: str  # of the expression
    rows: Bits  # [ceil(slots / 64)], bit i of word i / 64 is slot i, 0 past the end
    leaves: LeafFilter
    true: Bits  # slots of which the condition is true, visible or not

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        arrays = {id(array): array.nbytes for array in (self.rows, self.true, self.leaves.bits)}
        return int(sum(arrays.values())) + int(self.leaves.rank.nbytes) + 4 * len(self.text)

    def holds(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of these slots [N] live."""
        return bits.holds(self.rows, rows)


def check_where(text: str, columns: Mapping[str, AttributeColumn]) -> None:
    """Raises BadRequest for what is no condition over these columns; reads no row."""
    bind(read_tree(text), columns)


def live_rows(text: str, items: ItemRows) -> LiveRows:
    """Items in which the condition is true, neither false nor NULL, and that are visible, and their leaves.

    Raises BadRequest naming a position of the text.
    """
    return live_of(text, items, true_rows(text, items))


def live_of(text: str, items: ItemRows, true: Bits) -> LiveRows:
    """What is visible of the slots in which the condition is true, and their leaves."""
    rows = true if items.visible is None else true & items.visible
    return LiveRows(text, rows, items.places.filter(rows), true)


def true_rows(text: str, items: ItemRows, known: Bits | None = None, slots: int = 0) -> Bits:
    """Bits of the slots in which the condition is true; `known` are those of the first `slots`.

    Raises BadRequest naming a position of the text.
    """
    tree = read_tree(text)
    found = np.zeros(-(-items.places.slots // 64), np.uint64)
    if known is not None:
        found[: len(known)] = known
    octets = found.view(np.uint8)
    for segment in items.segments:
        if segment.first + segment.length <= slots:
            continue
        run = bind(tree, segment.columns)
        for first in range(0, segment.length, PIECE):
            last = min(first + PIECE, segment.length)
            true = np.broadcast_to(run(first, last).values, last - first)
            _write(octets, segment.first + first, true)
    return found


def _write(octets: NDArray[np.uint8], first: int, flags: NDArray[np.bool_]) -> None:
    """Flags [N] as bits from number `first` on; what lies before stays."""
    lead = first & 7
    if lead:
        flags = np.concatenate([np.zeros(lead, np.bool_), flags])
    packed = np.packbits(flags, bitorder="little")
    octets[first >> 3 : (first >> 3) + len(packed)] |= packed
