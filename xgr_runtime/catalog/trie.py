"""The trie as a sorted matrix of SIDs: every node is a contiguous range of leaves, stored as CSR arrays.

Owns sorting and numbering. Plain numpy, so that the same arrays feed the kernels and the tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xgr_kernels.trie import Trie

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from xgr_runtime.catalog.scoring import Scoring

    Int32 = NDArray[np.int32]
    Int64 = NDArray[np.int64]


MAX_DEPTH = 8


def pack(sids: Int32) -> Int64 | None:
    """SIDs [N, depth] as one integer per row in the same order, or None if 63 bits do not hold them.

    One key sorts several times faster than one per level; real code books are narrow ranges of a vocabulary.
    """
    low = sids.min(axis=0)
    bits = [int(span).bit_length() for span in sids.max(axis=0).astype(np.int64) - low]
    if sum(bits) > 63:
        return None
    packed = np.zeros(len(sids), np.int64)
    for level, width in enumerate(bits):
        packed = (packed << width) | (sids[:, level].astype(np.int64) - int(low[level]))
    return packed


def first_difference(sids: Int32) -> NDArray[np.int8]:
    """For each row [N] of sorted SIDs the first level that differs from the row above.

    Row 0 says 0; a row that equals the one above says `depth`.
    """
    depth = sids.shape[1]
    first = np.full(len(sids), depth, np.int8)
    for level in reversed(range(depth)):
        first[1:][sids[1:, level] != sids[:-1, level]] = level
    first[0] = 0
    return first


def csr_levels(sids: Int32) -> tuple[list[Int32], list[Int32]]:
    """Per-level (tokens [n_l], lo [n_l + 1]) of sorted distinct SIDs [leaves, depth].

    `lo` is the first leaf of each node and closes with the number of leaves; the last level has none, because
    its node number is the leaf number.
    """
    leaves, depth = sids.shape
    split = first_difference(sids)
    tokens, lo = [], []
    for level in range(depth):
        starts = np.flatnonzero(split <= level).astype(np.int32)
        tokens.append(np.ascontiguousarray(sids[starts, level]))
        last = level == depth - 1
        lo.append(np.empty(0, np.int32) if last else np.append(starts, np.int32(leaves)))
    return tokens, lo


class Levels(NamedTuple):
    """What a search descends: forced tokens of the head, SIDs, forced tokens of the tail."""

    trie: Trie
    first: int  # level of a SID's first token
    silent: frozenset[int]  # levels whose one token adds exactly 0


def tail_arrays(leaves: int, scoring: Scoring) -> dict[str, NDArray[Any]]:
    """The levels of a tail: one child for every leaf, always the same token. They lie in the built file."""
    tail = scoring.emitted_tail
    if not tail:
        return {}
    tokens = {f"tail.{i}": np.full(leaves, forced.token, np.int32) for i, forced in enumerate(tail)}
    return {**tokens, "leaf_lo": np.arange(leaves + 1, dtype=np.int32)}


def scored_levels(sid: Trie, scoring: Scoring, arrays: Mapping[str, NDArray[Any]]) -> Levels:
    """Of a search that scores over the vocabulary; `arrays` hold those of `tail_arrays`."""
    head, tail = scoring.emitted_head, scoring.emitted_tail
    before = _with_head(sid, scoring)
    levels = [arrays[f"tail.{i}"] for i in range(len(tail))]
    closing = [arrays["leaf_lo"] for _ in tail]
    trie = Trie(sid.leaves, (*before.tokens, *levels), (*before.lo[:-1], *closing, before.lo[-1]))
    silent = [level for level, forced in enumerate(head) if not forced.scored]
    silent += [before.depth + i for i, forced in enumerate(tail) if not forced.scored]
    return Levels(trie, len(head), frozenset(silent))


def relative_levels(sid: Trie, scoring: Scoring) -> Levels:
    """Of a search whose scores are relative to a level's tokens: one that is forced adds 0, so no tail."""
    first = len(scoring.emitted_head)
    return Levels(_with_head(sid, scoring), first, frozenset(range(first)))


def _with_head(sid: Trie, scoring: Scoring) -> Trie:
    tokens = tuple(np.array([forced.token], np.int32) for forced in scoring.emitted_head)
    root = np.array([0, sid.leaves], np.int32)
    return Trie(sid.leaves, (*tokens, *sid.tokens), (*(root for _ in tokens), *sid.lo))


def branching(trie: Trie) -> list[tuple[float, int]]:
    """(mean, maximum) of children per node; entry l is about the nodes above level l (entry 0: the root)."""
    tokens, lo = trie.tokens, trie.lo
    counts = [np.array([len(tokens[0])])]
    for level in range(1, trie.depth):
        above = lo[level - 1]
        inner = len(lo[level]) > 0
        counts.append(np.diff(np.searchsorted(lo[level], above)) if inner else np.diff(above))
    return [(float(count.mean()), int(count.max())) for count in counts]
