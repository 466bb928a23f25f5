"""Causal attention by its definition, row by row in float64: the yardstick for every other backend."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from xgr_kernels.attention.causal.types import Partial


def attend(
    q: Tensor, k: Tensor, v: Tensor, row_offsets: list[int], scale: float, prefix: Partial | None
) -> Tensor:
    """See `api.causal_attention`."""
    group = q.shape[1] // k.shape[1]
    keys, values = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    before, lse2 = prefix or (torch.zeros_like(q), torch.full(q.shape[:2], -math.inf))
    o = torch.empty(q.shape, dtype=torch.float64)
    for first, last in pairwise(row_offsets):
        for r in range(first, last):
            seen = slice(first, r + 1)
            scores = torch.einsum("hd,nhd->hn", q[r].double(), keys[seen]) * scale
            others = lse2[r].double().unsqueeze(1) * math.log(2)  # [Hq, 1]: what precedes weighs as one score
            weights = torch.cat([others, scores], 1).softmax(1)
            o[r] = weights[:, :1] * before[r].double()
            o[r] += torch.einsum("hn,nhd->hd", weights[:, 1:], values[seen])
    return o.to(q.dtype)
