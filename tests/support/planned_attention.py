"""Attention that is planned first, as on a GPU, and computed by the CPU's kernels: for engines on a CPU."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.attention.causal.api import causal_attention
from xgr_kernels.attention.paged import PagedAttention
from xgr_kernels.attention.shared.api import SharedPlan, shared_attention


class PlannedAttention(PagedAttention):
    """What `PagedAttention` does, in any dtype and for any head size; it has none of its memory."""

    def __init__(self, rows: int, requests: int, page_size: int, causal: bool) -> None:
        self.rows, self.requests, self.page_size, self.causal = rows, requests, page_size, causal
        self.planned: SharedPlan | None = None

    def plan(self, row_offsets: Sequence[int], pages: Sequence[np.ndarray], lengths: Sequence[int]) -> None:
        assert len(row_offsets) - 1 == len(pages) == len(lengths) <= self.requests
        assert row_offsets[-1] <= self.rows
        self.planned = SharedPlan(list(row_offsets), list(pages), list(lengths), self.page_size)

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        assert q.shape[0] == self.rows
        o, lse2 = torch.zeros_like(q), torch.zeros(q.shape[:2])
        if (plan := self.planned) is None:
            return o, lse2
        used = plan.row_offsets[-1]
        if not self.causal:
            o[:used], lse2[:used] = shared_attention(q[:used], k_pages, v_pages, plan, scale)
            return o, lse2
        counts = np.diff(plan.row_offsets)
        starts = [length - int(count) for length, count in zip(plan.lengths, counts, strict=True)]
        k = torch.cat([plan.read(k_pages, b)[start:] for b, start in enumerate(starts)])
        v = torch.cat([plan.read(v_pages, b)[start:] for b, start in enumerate(starts)])
        before = SharedPlan(plan.row_offsets, plan.pages, starts, self.page_size)
        prefix = shared_attention(q[:used], k_pages, v_pages, before, scale) if any(starts) else None
        o[:used] = causal_attention(q[:used], k, v, plan.row_offsets, scale, prefix)
        return o, lse2
