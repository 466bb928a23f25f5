"""SIDs merged into sorted arrays: where they lie in a trie, and the arrays by leaf with those that it lacks.

A new leaf is put in front of a leaf that is there. On each level it lies below a node that is there, or makes
one; either way the nodes behind it begin one leaf later. So every array is copied once, with a few numbers in
between, and nothing is sorted or compared but the new SIDs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xgr_runtime.catalog.trie import first_difference, tail_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from xgr_kernels.trie import Trie
    from xgr_runtime.catalog.snapshot import Catalog

    Int32 = NDArray[np.int32]
    Int64 = NDArray[np.int64]

_PIECES = 1024  # insertions that are made piece by piece, at the speed of memory


class Found(NamedTuple):
    """Where SIDs [N, depth] are in a trie, or would be."""

    level: Int64  # [N] the first at which there is no such node; depth: there is such a leaf
    leaf: Int64  # [N] the leaf, or the one in front of which it would be put
    nodes: list[Int64]  # per level [N]: the node above the leaf, or the one in front of which it would be put


def find(trie: Trie, sids: Int32) -> Found:
    """Down the trie, level by level, all SIDs at once."""
    count = len(sids)
    first, last = np.zeros(count, np.int64), np.full(count, trie.leaves, np.int64)
    level, nodes = np.full(count, trie.depth), []
    for at, (tokens, lo) in enumerate(zip(trie.tokens, trie.lo, strict=True)):
        low, high = (_places(lo, first), _places(lo, last)) if len(lo) else (first, last)
        within = level == trie.depth  # those that have left the trie lie in front of `first`
        node = np.where(within, _first_not_below(tokens, low, np.where(within, high, low), sids[:, at]), low)
        there = within & (node < high)
        there[there] = tokens[node[there]] == sids[there, at]
        level[within & ~there] = at
        first = np.where(within, lo[node] if len(lo) else node, first)
        last = np.where(there, lo[np.where(there, node + 1, 0)] if len(lo) else node + 1, first)
        nodes.append(node)
    return Found(level, first, nodes)


def _places(ascending: Int32, numbers: Int64) -> Int64:
    """searchsorted of numbers of one type: of two types it copies the whole array."""
    return np.searchsorted(ascending, numbers.astype(np.int32))


def _first_not_below(tokens: Int32, low: Int64, high: Int64, wanted: Int32) -> Int64:
    """searchsorted(tokens[low:high], wanted) + low, for each [N]."""
    while (low < high).any():
        middle = (low + high) // 2
        below = low < high
        below[below] = tokens[middle[below]] < wanted[below]
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    return low


def merged(catalog: Catalog, sids: Int32, found: Found) -> dict[str, NDArray[Any]]:
    """Arrays of the trie with the new leaves `sids` [N, depth], sorted and distinct, none of them there."""
    trie, before = catalog.trie, found.leaf
    split = first_difference(sids)
    arrays: dict[str, NDArray[Any]] = {}
    for level, (tokens, lo) in enumerate(zip(trie.tokens, trie.lo, strict=True)):
        makes = (found.level <= level) & (split <= level)
        at = found.nodes[level]
        arrays[f"tokens.{level}"] = inserted(tokens, at[makes], sids[makes, level])
        if len(lo):
            moved = added(lo, at + (found.level > level))
            firsts = (before + np.arange(len(sids)))[makes].astype(np.int32)
            arrays[f"lo.{level}"] = inserted(moved, at[makes], firsts)
        else:
            arrays[f"lo.{level}"] = lo
    return arrays | tail_arrays(catalog.leaves + len(sids), catalog.scoring)


def inserted(array: NDArray[Any], at: NDArray[np.integer], values: NDArray[Any]) -> NDArray[Any]:
    """A copy with values[i] in front of array[at[i]], `at` ascending; without any, the array itself."""
    if not len(at):
        return array
    if len(at) > _PIECES:
        return np.insert(array, at, values, axis=0)
    pieces, done = [], 0
    for number, place in enumerate(at.tolist()):
        pieces += [array[done:place], values[number : number + 1]]
        done = place
    return np.concatenate([*pieces, array[done:]])


def added(array: Int32, starts: NDArray[np.integer]) -> Int32:
    """A copy in which 1 is added to array[i] for each of `starts`, ascending, that is at most i."""
    if len(starts) > _PIECES:
        more = np.cumsum(np.bincount(starts, minlength=len(array))[: len(array)])
        return (array + more).astype(np.int32)
    changed = array.copy()
    ends = [*starts.tolist(), len(array)]
    for number, (first, last) in enumerate(pairwise(ends), start=1):
        changed[first:last] += np.int32(number)
    return changed


def arrays_with(catalog: Catalog, changed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All arrays of the next version."""
    return {**catalog.arrays, **changed}
