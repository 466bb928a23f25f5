"""Causal attention on CPU: one flash-attention call per prompt, which skips the keys behind a block of rows.

The kernel reads shared KV heads in place; repeating them first measured the same. One masked call over prefix
and new tokens needs no merge, but it computes the triangle that causal attention skips (kernels/RESULTS.md).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from xgr_kernels.causal_attention.types import Partial

LN_2 = math.log(2.0)


def attend(
    q: Tensor, k: Tensor, v: Tensor, row_offsets: list[int], scale: float, prefix: Partial | None
) -> Tensor:
    """See `api.causal_attention`."""
    outputs = []
    for first, last in pairwise(row_offsets):
        if first < last:
            rows = slice(first, last)
            own, lse = _attend_one(q[rows], k[rows], v[rows], scale)
            outputs.append(own if prefix is None else _merge(own, lse, prefix[0][rows], prefix[1][rows]))
    if len(outputs) == 1:
        return outputs[0]  # a lone prompt needs no copy
    return torch.cat(outputs) if outputs else torch.empty_like(q)


def _attend_one(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Partial:
    """q [L, Hq, D], k and v [L, Hkv, D] -> o [L, Hq, D], lse [L, Hq] natural log."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, H, L, D]
    o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=True, scale=scale)
    return o[0].transpose(0, 1), lse[0].transpose(0, 1)


def _merge(o: Tensor, lse: Tensor, prefix_o: Tensor, prefix_lse2: Tensor) -> Tensor:
    """Both parts, weighted by their share of the whole softmax; lse is finite, for a token sees itself."""
    share = torch.sigmoid(prefix_lse2 * LN_2 - lse).unsqueeze(-1)  # of the prefix; 0 where there is none
    return torch.lerp(o.float(), prefix_o.float(), share).to(o.dtype)
