"""Exact selection of the best children of a request's beams, over a catalog's trie and filters."""

from xgr_kernels.beam_select.api import (
    BeamBatch,
    LeafFilter,
    ScoreMode,
    Selection,
    Trie,
    beam_select,
    no_filter,
    warm_up,
)

__all__ = ["BeamBatch", "LeafFilter", "ScoreMode", "Selection", "Trie", "beam_select", "no_filter", "warm_up"]
