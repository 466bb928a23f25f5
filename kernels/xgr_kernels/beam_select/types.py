"""What beam selection takes and gives: plain numpy data, shared by every backend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xgr_kernels.trie import LeafFilter, Normaliser, Trie


@dataclass(frozen=True)
class BeamBatch:
    """R beams of B requests, each request at its own level, with its own width, trie and filter."""

    row_offsets: Sequence[int]  # [B+1], rows of request b are [row_offsets[b], row_offsets[b+1])
    level: Sequence[int]  # [B] level of the children, 0 for the first token
    width: Sequence[int]  # [B] at least 1
    tries: Sequence[Trie]  # [B]
    filters: Sequence[LeafFilter]  # [B]
    normalisers: Sequence[Normaliser]  # [B]
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
