"""A catalog as selection reads it: its trie, the leaves that live, what a score is relative to.

Whoever makes such arrays imports this file alone: numpy, no torch, and nothing else of this package.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int32 = NDArray[np.int32]

ScoreMode = Literal["vocab", "legal", "level"]
"""Log probabilities are over the vocabulary, the legal children of a beam, or a level's tokens."""

Normaliser = Literal["vocab", "legal", "given"]
"""What the log-sum-exp of a row is over; `given`: of none, the row holds log probabilities already."""

MAX_DENIED = 256
"""Leaves of a filter's list; a longer one becomes a bitmap."""

BLOCK_BITS = 512
"""Bits of a bitmap per entry of its ranks."""

_WORDS = BLOCK_BITS // 64


class Trie(NamedTuple):
    """A node is the range [lo, hi) of the leaves under it; leaves are distinct SIDs in sorted order."""

    leaves: int
    tokens: tuple[Int32, ...]  # per level [n], nodes in sorted order: children of a node lie together
    lo: tuple[Int32, ...]  # per level [n + 1], first leaf of each, closing with `leaves`; [] at the last

    @property
    def depth(self) -> int:
        """Tokens of a SID."""
        return len(self.tokens)

    @property
    def nodes(self) -> list[int]:
        """Of each level; the last level's are leaves."""
        return [len(level) for level in self.tokens]


class LeafFilter(NamedTuple):
    """Live leaves: those set in `bits` and not in `deny`."""

    bits: NDArray[np.uint64]  # [ceil(leaves / 64)], bit i of word i / 64 is leaf i, 0 past the end; []: all
    rank: NDArray[np.uint32]  # [ceil(leaves / 512) + 1], set bits before each block of 512; [] with `bits`
    deny: Int32  # [MAX_DENIED at most], sorted and distinct, each set in `bits`

    def holds(self, leaves: Int32) -> NDArray[np.bool_]:
        """Which of these leaves [N] are set in `bits`, whatever `deny` says."""
        return _bit(self.bits, leaves) if len(self.bits) else np.ones(len(leaves), np.bool_)

    def live(self, leaves: int) -> int:
        """How many of the catalog's `leaves` are alive."""
        return (int(self.rank[-1]) if len(self.rank) else leaves) - len(self.deny)


def no_filter() -> LeafFilter:
    """A filter that lets every leaf live."""
    return LeafFilter(np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.int32))


def filter_of_bits(bits: NDArray[np.uint64]) -> LeafFilter:
    """The filter of the leaves that are set in `bits` [ceil(leaves / 64)], 0 past the end."""
    return LeafFilter(bits, _ranks(bits), np.empty(0, np.int32))


def leaf_filter(
    leaves: int, allow: ArrayLike | None, deny: ArrayLike = (), within: LeafFilter | None = None
) -> LeafFilter:
    """The filter of a catalog with `leaves` leaves; both lists in any order, repeated entries allowed.

    within: a filter without denied leaves, of those that may live at all; its arrays are shared.
    Raises: ValueError for a leaf that the catalog does not have.
    """
    denied = _checked(leaves, deny, "deny")
    if within is not None:
        return _within(leaves, within, None if allow is None else _checked(leaves, allow, "allow"), denied)
    if allow is None and len(denied) <= MAX_DENIED:
        return no_filter()._replace(deny=denied)
    if allow is None:
        bits = ~_bitmap(leaves, denied)
        bits[-1] &= ~np.uint64(0) >> np.uint64(-leaves % 64)
        every = np.minimum(np.arange(0, leaves + BLOCK_BITS, BLOCK_BITS), leaves).astype(np.uint32)
        return LeafFilter(bits, every - _ranks_of(leaves, denied), denied[:0])
    allowed = _checked(leaves, allow, "allow")
    bits = _bitmap(leaves, allowed)
    denied = denied[_bit(bits, denied)]
    if len(denied) > MAX_DENIED:
        allowed = np.setdiff1d(allowed, denied, assume_unique=True)
        bits, denied = _bitmap(leaves, allowed), denied[:0]
    return LeafFilter(bits, _ranks_of(leaves, allowed), denied)


def _within(leaves: int, within: LeafFilter, allowed: Int32 | None, denied: Int32) -> LeafFilter:
    """`leaf_filter` of sorted distinct leaves, inside of a filter with bits."""
    if allowed is not None:
        return leaf_filter(leaves, allowed[_bit(within.bits, allowed)], denied)
    denied = denied[_bit(within.bits, denied)]
    if len(denied) <= MAX_DENIED:
        return within._replace(deny=denied)
    left = within.bits & ~_bitmap(leaves, denied)
    return LeafFilter(left, within.rank - _ranks_of(leaves, denied), denied[:0])


def distinct_sorted(values: Int32) -> Int32:
    """Sorted values without repetition."""
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
        raise ValueError(
            f"the {name} list must hold leaf numbers below {leaves}: resolve it with the same catalog version"
        )
    return distinct_sorted(np.sort(array.astype(np.int32)))


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


def _ranks_of(leaves: int, members: Int32) -> NDArray[np.uint32]:
    """`_ranks` of the bits of sorted distinct leaves, of which a short list needs no look at all words."""
    rank = np.zeros(-(-leaves // BLOCK_BITS) + 1, np.uint32)
    np.cumsum(np.bincount(members // BLOCK_BITS, minlength=len(rank) - 1), out=rank[1:])
    return rank


def _ranks(bits: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Set bits before each block of 512, closing with the total."""
    counts = np.add.reduceat(np.bitwise_count(bits), np.arange(0, len(bits), _WORDS), dtype=np.uint32)
    rank = np.zeros(len(counts) + 1, np.uint32)
    np.cumsum(counts, out=rank[1:])
    return rank
