"""Shared attention on CPU: one flash-attention call per request, its GQA group folded into the query rows.

Folding reads every key once per KV head instead of once per query head.
"""

import math

import torch
from torch import Tensor

from xgr_kernels.shared_attention.types import SharedPlan

LOG2_E = 1.0 / math.log(2.0)


def attend(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, plan: SharedPlan, scale: float
) -> tuple[Tensor, Tensor]:
    """See `api.shared_attention`."""
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse2 = torch.empty(q.shape[:2], dtype=torch.float32)
    for b, length in enumerate(plan.lengths):
        rows = slice(plan.row_offsets[b], plan.row_offsets[b + 1])
        if rows.start == rows.stop:
            continue
        if length == 0:
            o[rows], lse2[rows] = 0.0, -math.inf
            continue
        _attend_one(q[rows], plan.read(k_pages, b), plan.read(v_pages, b), scale, o[rows], lse2[rows])
    return o, lse2


def _attend_one(q: Tensor, k: Tensor, v: Tensor, scale: float, o: Tensor, lse2: Tensor) -> None:
    """q, o [W, Hq, D], k, v [L, Hkv, D], lse2 [W, Hq]; fills o and lse2."""
    W, Hq, D = q.shape
    Hkv = k.shape[1]
    group = Hq // Hkv
    folded = q.view(W, Hkv, group, D).transpose(0, 1).reshape(1, Hkv, W * group, D)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        folded, k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0), scale=scale
    )  # [1, Hkv, W * group, D], [1, Hkv, W * group] natural log
    o.view(W, Hkv, group, D).copy_(out.view(Hkv, W, group, D).transpose(0, 1))
    torch.mul(lse.reshape(Hkv, W, group).transpose(0, 1), LOG2_E, out=lse2.view(W, Hkv, group))
