"""Causal attention on CPU: one call of the compiled kernel per prompt, whose blocks skip later keys.

The prefix enters the softmax as one more score, its log-sum-exp, whose value is its o.
"""

from itertools import pairwise

import torch
from torch import Tensor

from xgr_kernels.attention import flash
from xgr_kernels.attention.causal.types import Partial


def attend(
    q: Tensor, k: Tensor, v: Tensor, row_offsets: list[int], scale: float, prefix: Partial | None
) -> Tensor:
    """See `api.causal_attention`."""
    o = torch.empty(q.shape, dtype=torch.float32)
    lse2 = torch.empty(q.shape[:2], dtype=torch.float32)
    if prefix is not None:
        o.copy_(prefix[0])
        lse2.copy_(prefix[1])
    for first, last in pairwise(row_offsets):
        if first < last:
            rows = slice(first, last)
            flash.attend(
                q[rows], k[rows], v[rows], o[rows], lse2[rows], scale, causal=True, merge=prefix is not None
            )
    return o.to(q.dtype)
