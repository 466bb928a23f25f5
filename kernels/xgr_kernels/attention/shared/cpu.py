"""Shared attention on CPU: one call of the compiled kernel per request, which reads a key once per KV head.

A few rows would fill few lanes of its vectors, so they go to torch's flash attention, unless the prompt's
pages would have to be gathered for it.
"""

import math

import torch
from torch import Tensor

from xgr_kernels.attention import flash
from xgr_kernels.attention.shared.types import SharedPlan

FEW = 16  # rows of a KV head from which the compiled kernel is the faster one (kernels/RESULTS.md)


def attend(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, plan: SharedPlan, scale: float
) -> tuple[Tensor, Tensor]:
    """See `api.shared_attention`."""
    o = torch.empty(q.shape, dtype=torch.float32)
    lse2 = torch.empty(q.shape[:2], dtype=torch.float32)
    group = q.shape[1] // k_pages.shape[2]
    for b, length in enumerate(plan.lengths):
        rows = slice(plan.row_offsets[b], plan.row_offsets[b + 1])
        count = rows.stop - rows.start
        if count == 0:
            continue
        if length == 0:
            o[rows], lse2[rows] = 0.0, -math.inf
            continue
        if count * group < FEW and plan.first_pages[b] is not None:
            k, v = plan.read(k_pages, b), plan.read(v_pages, b)
            _attend_few(q[rows], k, v, o[rows], lse2[rows], scale)
        else:
            pool, pages = (k_pages, v_pages), plan.pages[b]
            flash.attend_pages(q[rows], pool, pages, length, o[rows], lse2[rows], scale)
    return o.to(q.dtype), lse2


def _attend_few(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse2: Tensor, scale: float) -> None:
    """See `flash.attend`. Folding the GQA group into the rows reads a key once per KV head here too."""
    W, Hq, D = q.shape
    Hkv = k.shape[1]
    group = Hq // Hkv
    folded = q.reshape(W, Hkv, group, D).transpose(0, 1).reshape(1, Hkv, W * group, D)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        folded, k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0), scale=scale
    )  # [1, Hkv, W * group, D], [1, Hkv, W * group] natural log
    o.view(W, Hkv, group, D).copy_(out.view(Hkv, W, group, D).transpose(0, 1))
    torch.mul(lse.reshape(Hkv, W, group).transpose(0, 1), flash.LOG2_E, out=lse2.view(W, Hkv, group))
