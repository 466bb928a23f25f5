"""Filters over items, and the leaves that they let live.

The router resolves item ids to leaves; a decode worker makes a `LeafFilter` of leaf numbers alone. A leaf
dies only when no item on it is left; the rows of the spec drop the denied items of a leaf that lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xgr_kernels.trie import distinct_sorted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xgr_runtime.catalog.snapshot import Catalog
    from xgr_runtime.catalog.where import LiveRows

    Int32 = NDArray[np.int32]


class FilterSpec(NamedTuple):
    """A request's item filter as numbers; with an allow list, `allow_leaves` lacks the denied."""

    allow_leaves: Int32 | None  # sorted distinct leaves with an item left; None: no allow list
    deny_leaves: Int32  # sorted distinct leaves whose items are all denied; empty with an allow list
    allowed_rows: Int32 | None  # sorted distinct rows, allowed and not denied; None: no allow list
    denied_rows: Int32  # sorted distinct rows
    unknown_allow: int  # entries of allow that the catalog does not hold
    unknown_deny: int
    live: LiveRows | None = None  # what may live at all: with it, all of the above are about its rows


def resolve_items(
    catalog: Catalog,
    allow: Sequence[str | int] | None,
    deny: Sequence[str | int] = (),
    live: LiveRows | None = None,
) -> FilterSpec:
    """Item ids to leaves and rows. Unknown ids are ignored and counted; `allow` [] leaves nothing alive.

    live: the rows that may live at all, None: those that are visible; `deny_leaves` are then leaves that
    live by them. An item that was removed is unknown.
    """
    live = live or catalog.visible
    denied, unknown_deny = _known_rows(catalog, deny)
    if live is not None:
        denied = denied[live.holds(denied)]
    if allow is None:
        leaves = _fully_denied(catalog, denied, live)
        return FilterSpec(None, leaves, None, denied, 0, unknown_deny, live)
    listed, unknown_allow = _known_rows(catalog, allow)
    allowed = np.setdiff1d(listed, denied, assume_unique=True)
    if live is not None:
        allowed = allowed[live.holds(allowed)]
    leaves = distinct_sorted(np.sort(catalog.leaf_of_row[allowed]))
    return FilterSpec(leaves, np.empty(0, np.int32), allowed, denied, unknown_allow, unknown_deny, live)


def _known_rows(catalog: Catalog, items: Sequence[str | int]) -> tuple[Int32, int]:
    """Sorted distinct rows of the items, and how many entries are unknown."""
    if not len(items):
        return np.empty(0, np.int32), 0
    rows = catalog.item_rows(items)
    known = rows[rows >= 0]
    known = known[catalog.present(known)]
    return distinct_sorted(np.sort(known)), len(rows) - len(known)


def _fully_denied(catalog: Catalog, rows: Int32, live: LiveRows | None) -> Int32:
    """Leaves all of whose rows that live are in the distinct `rows`: there are as many of them."""
    if not len(rows):
        return np.empty(0, np.int32)
    leaves, counts = np.unique(catalog.leaf_of_row[rows], return_counts=True)
    if live is None:
        sizes = catalog.item_lo[leaves + 1] - catalog.item_lo[leaves]
    else:
        sizes = catalog.places.living(leaves, live.rows)
    full: Int32 = leaves[counts == sizes]
    return full
