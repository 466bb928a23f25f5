"""Expressions that were evaluated for one version, kept for the next request, and for the next version."""

from __future__ import annotations

from collections import OrderedDict
from functools import reduce
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xgr_runtime.catalog import bits
from xgr_runtime.catalog.places import EditStep
from xgr_runtime.catalog.where.live import ItemRows, LiveRows, live_of, live_rows, true_rows
from xgr_runtime.catalog.where.words import conjuncts

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEPS = 4  # batches after which leaves are found anew and not followed


class _Kept(NamedTuple):
    """An expression as an earlier version had it, and what has changed since; nothing: it is this one's."""

    live: LiveRows
    slots: int  # of that version
    since: tuple[EditStep, ...] = ()


class KeptFilters:
    """The least recently used go first, once all take more than `most_bytes`. For several threads.

    hits, misses: how often `left_by` found an expression here, and how often it did not.
    """

    def __init__(self, items: ItemRows, most_bytes: int) -> None:
        self.items = items
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._shelf = Lock()  # held for moments
        self._turn = Lock()  # held while an expression is evaluated: who waits for it may want the same one
        self.held_bytes = 0
        self.hits = 0
        self.misses = 0

    def after(self, items: ItemRows, step: EditStep) -> KeptFilters:
        """Those of the next version: what is kept here needs a look at the changed items alone."""
        found = KeptFilters(items, self._most_bytes)
        with self._shelf:
            for text, kept in self._kept.items():
                found._kept[text] = kept._replace(since=(*kept.since, step))
            found.held_bytes, found.hits, found.misses = self.held_bytes, self.hits, self.misses
        return found

    def renumbered(self, items: ItemRows, slots: NDArray[np.integer]) -> KeptFilters:
        """Those of the same items under other numbers: slot i was `slots[i]` here."""
        found = KeptFilters(items, self._most_bytes)
        for text in list(self._kept):
            flags = bits.unpacked(self.left_by(text).true, self.items.places.slots)[slots]
            found._keep(live_of(text, items, bits.packed(flags)))
        found.hits, found.misses = self.hits, self.misses
        return found

    def __contains__(self, text: str) -> bool:
        """Whether the expression needs no evaluation now, or next to none."""
        return text in self._kept

    def left_by(self, text: str) -> LiveRows:
        """What the expression leaves. Raises BadRequest naming a position of the text."""
        if (found := self._find(text)) is not None and not found.since:
            return found.live
        with self._turn:
            found = self._find(text)
            if found is not None and not found.since:
                return found.live
            live = self._joined(text) if found is None else self._brought_up(found)
            ready = live is not None
            live = live or live_rows(text, self.items)
            with self._shelf:
                self.hits += ready
                self.misses += not ready
                self._keep(live)
            return live

    def _joined(self, text: str) -> LiveRows | None:
        """Of conditions that all have to hold, where each of them is kept: AND is true where all are."""
        with self._shelf:
            parts = [self._kept.get(part) for part in conjuncts(text)]
        if not parts or None in parts:
            return None
        lives = [self._brought_up(one) if one.since else one.live for one in parts if one is not None]
        return live_of(text, self.items, reduce(np.bitwise_and, [live.true for live in lives]))

    def bring_up(self) -> None:
        """Makes all that is kept ready, so that no request has to."""
        for text in list(self._kept):
            self.left_by(text)

    def _find(self, text: str) -> _Kept | None:
        with self._shelf:
            found = self._kept.get(text)
            if found is not None:
                self._kept.move_to_end(text)
                self.hits += not found.since
            return found

    def _brought_up(self, kept: _Kept) -> LiveRows:
        """Of this version, from what an earlier one had."""
        items, before = self.items, kept.live
        true = before.true
        if items.places.slots > kept.slots:
            true = true_rows(before.text, items, before.true, kept.slots)
        rows = true if items.visible is None else true & items.visible
        if len(kept.since) > _STEPS:
            return live_of(before.text, items, true)
        return LiveRows(before.text, rows, items.places.followed(before.leaves, rows, kept.since), true)

    def _keep(self, live: LiveRows) -> None:
        """One that is larger than all that may be kept is not."""
        before = self._kept.pop(live.text, None)
        self.held_bytes -= before.live.nbytes if before else 0
        if live.nbytes > self._most_bytes:
            return
        self._kept[live.text] = _Kept(live, self.items.places.slots)
        self.held_bytes += live.nbytes
        while self.held_bytes > self._most_bytes:
            self.held_bytes -= self._kept.popitem(last=False)[1].live.nbytes
