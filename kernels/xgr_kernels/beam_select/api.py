"""Beam selection: the `width` best children over all beams of each request, exactly."""

import torch
from torch import Tensor

from xgr_kernels.beam_select import cpu, reference
from xgr_kernels.beam_select.types import BeamBatch, Selection

__all__ = ["BeamBatch", "Selection", "beam_select", "warm_up"]


def beam_select(logits: Tensor, batch: BeamBatch, backend: str = "cpu") -> Selection:
    """The best min(width, candidates) children of each request's beams.

    logits [R, V] float32, contiguous, on the CPU; on a GPU `cuda.Selector` selects, beams staying there.
    A child is a candidate if a leaf under it is alive and its logit is above -inf. Its score is
    fl32(scores[r] + fl32(logit - lse[r])), where lse is the natural log-sum-exp of the row ("vocab") or of
    its live children ("legal"), or 0 ("given": the row holds log probabilities).
    Order: score descending, parent ascending, token ascending.
    A NaN or +inf in a row of logits, a NaN or +inf score, or an infinite lse over live children marks the
    request invalid, with no results; never its batch mates. No candidates give no results, and are valid.
    Raises: ValueError for logits of the wrong type or shape, or an unknown backend.
    After: early sorting termination in xGR (arXiv 2512.11529).
    """
    rows = int(batch.row_offsets[-1])
    if logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous float32, not {logits.dtype}")
    if logits.device.type != "cpu":
        raise ValueError(f"logits must be on the CPU, not on {logits.device}: on a GPU use `cuda.Selector`")
    if logits.ndim != 2 or logits.shape[0] != rows:
        raise ValueError(f"logits have shape {list(logits.shape)}, the batch has {rows} rows")
    if backend == "cpu":
        return cpu.select(logits, batch)
    if backend == "reference":
        return reference.select(logits, batch)
    raise ValueError(f"unknown beam_select backend {backend!r}: use cpu or reference")


def warm_up() -> None:
    """Compiles every kernel, so that no request pays for it: some 20 s once, then read from numba's cache."""
    cpu.warm_up()
