"""Exact selection of the best children of a request's beams, over a catalog's trie and filters."""

from xgr_kernels.beam_select.api import BeamBatch, Selection, beam_select, warm_up

__all__ = ["BeamBatch", "Selection", "beam_select", "warm_up"]
