"""Finds items by words of their titles, whatever their case: a walk over the text, a little at a time."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xgr_runtime.catalog.slots import TextsBySlot
    from xgr_runtime.catalog.snapshot import Catalog

_PIECE = 1 << 16  # bytes that are searched at once: other threads wait meanwhile
RANKED = 1000  # matches of which the most popular come first


class FoundItems(NamedTuple):
    """`rows` of items, the most popular first. Not `whole`: there may be more of them."""

    rows: list[int]
    whole: bool


def find_by_title(catalog: Catalog, text: str, most: int, until: float) -> FoundItems:
    """At most so many visible items whose titles hold all words of `text`; looks until then (monotonic)."""
    words = sorted(text.lower().split(), key=len, reverse=True)
    titles = catalog.texts[1]
    rows: list[int] = []
    whole = True
    for row in _slots_with(titles, words[0]):
        if time.monotonic() >= until or len(rows) >= RANKED:
            whole = False
            break
        if row >= 0 and _shown(catalog, row):
            title = titles.get(row).decode().lower()
            if all(word in title for word in words):
                rows.append(row)
    popularity = catalog.popularity(np.array(rows, np.int64)) if rows else np.empty(0)
    ranked = [rows[at] for at in np.argsort(-popularity, kind="stable").tolist()]
    return FoundItems(ranked[:most], whole and len(ranked) <= most)


def _shown(catalog: Catalog, row: int) -> bool:
    visible = catalog.visible
    return visible is None or bool(visible.holds(np.array([row]))[0])


def _slots_with(titles: TextsBySlot, word: str) -> Iterator[int]:
    """Slots, ascending, whose title may hold the word; -1 where a piece has none, to look at the clock."""
    pattern = re.compile(b"".join(_any_case(char) for char in word))
    offsets, blob = titles.table.offsets, titles.table.blob.data
    at, end = 0, len(blob)
    while at < end and len(offsets):
        # A match may begin in one piece and end in the next: titles of it are found by where they begin.
        found = pattern.search(blob, at, min(end, at + _PIECE + 16 * len(word)))
        if found is None:
            at += _PIECE
            yield -1
            continue
        slot = int(np.searchsorted(offsets, found.start(), "right")) - 1
        yield slot
        at = int(offsets[slot + 1]) if found.end() <= offsets[slot + 1] else found.start() + 1
    for later, title in enumerate(titles.later):
        yield titles.built + later if pattern.search(title) else -1


def _any_case(char: str) -> bytes:
    """A pattern of this letter, large or small."""
    forms = {char, char.lower(), char.upper(), char.title()}
    return b"(?:" + b"|".join(re.escape(form.encode()) for form in sorted(forms)) + b")"
