"""What beam selection takes and gives: plain numpy data, shared by every backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

ScoreMode = Literal["vocab", "legal"]


class Trie(NamedTuple):
    """A catalog's leaf-range trie: a node is the range [lo, hi) of the leaves under it."""

    leaves: int
    tokens: tuple[
        np.ndarray, ...
    ]  # per level [n] int32, nodes in sorted order: children of a node lie together
    lo: tuple[
        np.ndarray, ...
    ]  # per level [n+1] int32 first leaf of each node, closing with `leaves`; [] at the last


class LeafFilter(NamedTuple):
    """Which leaves are alive: those set in `bits` and not denied."""

    bits: np.ndarray  # uint64 [ceil(leaves/64)], bit i of word i/64 is leaf i; [] means all alive
    rank: np.ndarray  # uint32 [ceil(leaves/512)+1], set bits before each block of 512; [] with empty bits
    deny: np.ndarray  # int32 [at most 256] sorted, distinct, each set in bits


def no_filter() -> LeafFilter:
    """A filter that lets every leaf live."""
    return LeafFilter(np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.int32))


@dataclass(frozen=True)
class BeamBatch:
    """R beams of B requests, each request at its own level, with its own width, trie and filter."""

    row_offsets: Sequence[int]  # [B+1], rows of request b are [row_offsets[b], row_offsets[b+1])
    level: Sequence[int]  # [B] level of the children, 0 for the first token
    width: Sequence[int]  # [B] at least 1
    tries: Sequence[Trie]  # [B]
    filters: Sequence[LeafFilter]  # [B]
    score_modes: Sequence[ScoreMode]  # [B]
    scores: np.ndarray  # [R] float32, natural log
    lo: np.ndarray  # [R] int32, the node of each beam; [0, leaves) at level 0
    hi: np.ndarray  # [R] int32


@dataclass(frozen=True)
class Selection:
    """The chosen children; those of request b lie at [offsets[b], offsets[b+1]), best first."""

    offsets: np.ndarray  # [B+1] int64
    score: np.ndarray  # float32, natural log
    token: np.ndarray  # int32
    parent: np.ndarray  # int32, row within the request
    lo: np.ndarray  # int32, node of the child
    hi: np.ndarray  # int32
    invalid: np.ndarray  # [B] bool: a NaN or +inf among its logits; no results
    overflow: np.ndarray  # [B] bool: always False on cpu and reference
    rows_skipped: np.ndarray  # [B] int64, rows of which no child was looked at
    elements_visited: np.ndarray  # [B] int64, children looked at to choose from
    elements_total: np.ndarray  # [B] int64, children of all rows

    def of(self, request: int) -> slice:
        """Where the children of `request` lie in the packed arrays."""
        return slice(int(self.offsets[request]), int(self.offsets[request + 1]))
