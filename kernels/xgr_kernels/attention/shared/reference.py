"""Shared attention by its definition, in float64: the yardstick for every other backend."""

import math

import torch
from torch import Tensor

from xgr_kernels.attention.shared.types import SharedPlan


def attend(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, plan: SharedPlan, scale: float
) -> tuple[Tensor, Tensor]:
    """See `api.shared_attention`; lse2 is float64 if q is, else float32."""
    o = torch.zeros(q.shape, dtype=torch.float64)
    lse2 = torch.full(q.shape[:2], -math.inf, dtype=torch.float64)
    for b, length in enumerate(plan.lengths):
        rows = slice(plan.row_offsets[b], plan.row_offsets[b + 1])
        if length == 0:
            continue
        k, v = _tokens(k_pages, plan, b), _tokens(v_pages, plan, b)  # [L, Hkv, D]
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # [L, Hq, D]
        scores = torch.einsum("rhd,lhd->rhl", q[rows].double(), k) * scale
        o[rows] = torch.einsum("rhl,lhd->rhd", scores.softmax(-1), v)
        lse2[rows] = scores.logsumexp(-1) / math.log(2)
    return o.to(q.dtype), lse2.to(torch.float64 if q.dtype == torch.float64 else torch.float32)


def _tokens(pool: Tensor, plan: SharedPlan, request: int) -> Tensor:
    """[L, Hkv, D] float64, token by token, with no idea of runs or views."""
    size = plan.page_size
    pages = plan.pages[request]
    return torch.stack([pool[int(pages[t // size]), t % size] for t in range(plan.lengths[request])]).double()
