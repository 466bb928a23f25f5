"""Filters over items, and what they become over leaves: a bitmap with ranks, or a short deny list.

The router resolves item ids to leaves; a decode worker makes the filter of leaf numbers alone. A leaf dies
only when no item on it is left; the rows of the spec drop the denied items of a leaf that lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from xgr_runtime.catalog.snapshot import Catalog

    Int32 = NDArray[np.int32]

MAX_DENY_LIST = 256  # leaves; a longer list becomes a bitmap
BLOCK_BITS = 512  # bits per rank entry
_WORDS = BLOCK_BITS // 64


class LeafFilter(NamedTuple):
    """Live leaves: those set in `bits` and not in `deny`."""

    bits: NDArray[
        np.uint64
    ]  # [ceil(leaves / 64)], bit i = leaf i; bits past the end are 0; empty = all alive
    rank: NDArray[np.uint32]  # [ceil(leaves / 512) + 1], set bits before each block; empty when bits is
    deny: Int32  # sorted distinct leaves, at most 256, each alive under bits


class FilterSpec(NamedTuple):
    """A request's item filter as numbers; with an allow list, `allow_leaves` lacks the denied."""

    allow_leaves: Int32 | None  # sorted distinct leaves with an item left; None: no allow list
    deny_leaves: Int32  # sorted distinct leaves whose items are all denied; empty with an allow list
    allowed_rows: Int32 | None  # sorted distinct rows, allowed and not denied; None: no allow list
    denied_rows: Int32  # sorted distinct rows
    unknown_allow: int  # entries of allow that the catalog does not hold
    unknown_deny: int


def resolve_items(
    catalog: Catalog, allow: Sequence[str | int] | None, deny: Sequence[str | int] = ()
) -> FilterSpec:
    """Item ids to leaves and rows. Unknown ids are ignored and counted; `allow` [] leaves nothing alive."""
    denied, unknown_deny = _known_rows(catalog, deny)
    if allow is None:
        return FilterSpec(None, _fully_denied(catalog, denied), None, denied, 0, unknown_deny)
    listed, unknown_allow = _known_rows(catalog, allow)
    allowed = np.setdiff1d(listed, denied, assume_unique=True)
    leaves = _distinct_sorted(catalog.leaf_of_row[allowed])
    return FilterSpec(leaves, np.empty(0, np.int32), allowed, denied, unknown_allow, unknown_deny)


def leaf_filter(leaves: int, allow_leaves: ArrayLike | None, deny_leaves: ArrayLike = ()) -> LeafFilter:
    """The filter of a catalog with `leaves` leaves; both lists in any order, repeated entries allowed.

    Raises CatalogError for a leaf that the catalog does not have.
    """
    deny = _checked(leaves, deny_leaves, "deny")
    if allow_leaves is None and len(deny) <= MAX_DENY_LIST:
        return LeafFilter(np.empty(0, np.uint64), np.empty(0, np.uint32), deny)
    if allow_leaves is None:
        bits = ~_bitmap(leaves, deny)
        bits[-1] &= ~np.uint64(0) >> np.uint64(-leaves % 64)
        return LeafFilter(bits, _ranks(bits), np.empty(0, np.int32))
    bits = _bitmap(leaves, _checked(leaves, allow_leaves, "allow"))
    deny = deny[_bit(bits, deny)]
    if len(deny) > MAX_DENY_LIST:
        bits &= ~_bitmap(leaves, deny)
        deny = deny[:0]
    return LeafFilter(bits, _ranks(bits), deny)


def live_leaves(filter: LeafFilter, lo: ArrayLike, hi: ArrayLike) -> NDArray[np.int64]:
    """How many leaves of each range [lo, hi) are alive; scalars or arrays of one shape."""
    first, last = np.asarray(lo, np.int64), np.asarray(hi, np.int64)
    denied = np.searchsorted(filter.deny, last) - np.searchsorted(filter.deny, first)
    if not len(filter.bits):
        return np.asarray(last - first - denied)
    return np.asarray(_rank_at(filter, last) - _rank_at(filter, first) - denied)


def count_alive(filter: LeafFilter, leaves: int) -> int:
    """How many of all leaves are alive."""
    total = int(filter.rank[-1]) if len(filter.rank) else leaves
    return total - len(filter.deny)


def _known_rows(catalog: Catalog, items: Sequence[str | int]) -> tuple[Int32, int]:
    """Sorted distinct rows of the items, and how many entries are unknown."""
    if not len(items):
        return np.empty(0, np.int32), 0
    rows = catalog.item_rows(items)
    known = rows[rows >= 0]
    return _distinct_sorted(np.sort(known)), len(rows) - len(known)


def _fully_denied(catalog: Catalog, rows: Int32) -> Int32:
    """Leaves all of whose rows are in the distinct `rows`: their number is the leaf's number of items."""
    if not len(rows):
        return np.empty(0, np.int32)
    of_rows = catalog.leaf_of_row[rows]
    leaves = _distinct_sorted(of_rows)  # rows are numbered in the order of leaves
    counts = np.diff(np.append(np.searchsorted(of_rows, leaves), len(rows)))
    sizes = catalog.item_lo[leaves + 1] - catalog.item_lo[leaves]
    full: Int32 = leaves[counts == sizes]
    return full


def _distinct_sorted(values: Int32) -> Int32:
    if len(values) < 2:
        return values
    first: NDArray[np.bool_] = np.concatenate([[True], values[1:] != values[:-1]])
    distinct: Int32 = values[first]
    return distinct


def _checked(leaves: int, values: ArrayLike, name: str) -> Int32:
    """Sorted distinct leaves, each below `leaves`."""
    array: NDArray[Any] = np.asarray(values)
    if not array.size:
        return np.empty(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= leaves:
        raise CatalogError(
            f"the {name} list must hold leaf numbers below {leaves}: resolve it with the same catalog version"
        )
    return _distinct_sorted(np.sort(array.astype(np.int32)))


def _bitmap(leaves: int, members: Int32) -> NDArray[np.uint64]:
    """Bits of sorted distinct leaves; touches only their words."""
    bits = np.zeros(-(-leaves // 64), np.uint64)
    if len(members):
        word = members >> 6
        starts = np.flatnonzero(np.concatenate([[True], word[1:] != word[:-1]]))
        masks = np.uint64(1) << (members & 63).astype(np.uint64)
        bits[word[starts]] = np.bitwise_or.reduceat(masks, starts)
    return bits


def _bit(bits: NDArray[np.uint64], leaves: Int32) -> NDArray[np.bool_]:
    set_: NDArray[np.bool_] = (bits[leaves >> 6] >> (leaves & 63).astype(np.uint64) & np.uint64(1)) == 1
    return set_


def _ranks(bits: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Set bits before each block of 512, closing with the total."""
    counts = np.add.reduceat(np.bitwise_count(bits), np.arange(0, len(bits), _WORDS), dtype=np.uint32)
    rank = np.zeros(len(counts) + 1, np.uint32)
    np.cumsum(counts, out=rank[1:])
    return rank


def _rank_at(filter: LeafFilter, leaf: NDArray[np.int64]) -> NDArray[np.int64]:
    """Set bits before `leaf`, which may be the number of leaves."""
    block = leaf // BLOCK_BITS
    word = block[..., None] * _WORDS + np.arange(_WORDS)
    below = np.clip(leaf[..., None] - word * 64, 0, 64).astype(np.uint64)
    inside = np.minimum(word, len(filter.bits) - 1)
    # A shift by 64 is undefined, so a whole word is taken as it is.
    mask = np.where(below == 64, ~np.uint64(0), (np.uint64(1) << (below & np.uint64(63))) - np.uint64(1))
    partial = np.bitwise_count(filter.bits[inside] & mask).sum(axis=-1, dtype=np.int64)
    return np.asarray(filter.rank[block].astype(np.int64) + partial)
