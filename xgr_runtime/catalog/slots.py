"""Slots: the numbers of items, and what came to a catalog after its file was built.

An item gets a slot when it comes, and keeps it. In a built catalog slots are the rows of the file: 0, 1, 2
and so on, in the order of leaves, then of collisions. Batches of edits append slots behind them: a new item
gets one, and so does a whole replacement, whose old slot is dead from then on. Only compaction numbers anew.

by slot, in the file    ids, titles, attributes, columns, popularity: memory-mapped, shared by all versions
by slot, behind it      the same of later slots, in `Later`: lists that a version copies, of what came alone
bits over slots         `Later.present` (neither removed nor replaced), `Catalog.visible` (present and not
                        hidden), what conditions leave: they outlive a batch, whose own slots alone are new
by leaf                 the trie, made anew where leaves come; sids, item_lo, the order of slots: `added.py`

Searches read leaves: `CatalogView.visible`, a filter of the leaves with a visible item, or what a condition
leaves of these. The router reads slots for lists of items: answers, allow, deny. Histories read the newest
slot of an id, dead or not, so that a removed item keeps its SID until compaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xgr_runtime.catalog.items import StringTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgr_runtime.catalog.added import Insertions
    from xgr_runtime.catalog.where import ColumnSegment, LiveRows

    Bits = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Later:
    """All of an edited catalog that is by slot, or about slots, besides the arrays of its built file.

    Nothing in here is changed once it is made: the next version copies what it adds to.
    """

    added: Insertions | None = None  # by leaf; None: nothing came
    present: Bits | None = None  # [ceil(slots / 64)]; None: all are
    visible: LiveRows | None = None  # None: all are
    ids: list[bytes] = field(default_factory=list)  # of slots behind those of the file
    titles: list[bytes] = field(default_factory=list)
    attributes: list[bytes] = field(default_factory=list)
    popularity: list[float] = field(default_factory=list)
    ranked: dict[int, float] = field(default_factory=dict)  # popularity of slots that were ranked anew
    newest: dict[bytes, int] = field(default_factory=dict)  # slot of each id that was put
    segments: tuple[ColumnSegment, ...] = ()  # columns of later slots


class TextsBySlot(NamedTuple):
    """A table of the file, and the texts of later slots."""

    table: StringTable
    later: list[bytes]
    built: int  # slots of the file

    def get(self, slot: int) -> bytes:
        return self.table.get(slot) if slot < self.built else self.later[slot - self.built]

    def take(self, slots: NDArray[np.integer]) -> list[bytes]:
        """The texts of `slots` [N]."""
        if not self.later:
            return self.table.take(slots) if len(self.table.offsets) else [b""] * len(slots)
        if len(self.table.offsets):
            inside = slots < self.built
            texts = iter(self.table.take(slots[inside]))
        else:
            inside = np.zeros(len(slots), np.bool_)
            texts = iter(())
        return [
            next(texts) if from_file else self.later[slot - self.built] if slot >= self.built else b""
            for slot, from_file in zip(slots.tolist(), inside.tolist(), strict=True)
        ]

    def strings(self, slots: NDArray[np.integer]) -> list[str]:
        """The same, decoded."""
        if not self.later and len(self.table.offsets):
            return self.table.strings(slots)
        return [text.decode() for text in self.take(slots)]

    def table_of(self, slots: NDArray[np.integer]) -> StringTable:
        """The texts of `slots` [N] as one table; those that lie behind each other are copied at once."""
        lengths = self._lengths()[slots]
        runs = np.flatnonzero((np.diff(slots, prepend=-2) != 1) | (slots == self.built))
        pieces = [np.empty(0, np.uint8)]
        for run, end in pairwise([*runs.tolist(), len(slots)]):
            first, last = int(slots[run]), int(slots[end - 1]) + 1
            if first >= self.built:
                later = b"".join(self.later[first - self.built : last - self.built])
                pieces.append(np.frombuffer(later, np.uint8))
            elif len(self.table.offsets):
                pieces.append(self.table.blob[self.table.offsets[first] : self.table.offsets[last]])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return StringTable(np.concatenate(pieces), offsets)

    def _lengths(self) -> NDArray[np.int64]:
        """Bytes of the text of each slot."""
        offsets = self.table.offsets
        built = np.diff(offsets) if len(offsets) else np.zeros(self.built, np.int64)
        later = np.fromiter(map(len, self.later), np.int64, len(self.later))
        return np.concatenate([built, later])

    def any(self) -> bool:
        """Whether there is some text."""
        return len(self.table.blob) > 0 or any(self.later)
