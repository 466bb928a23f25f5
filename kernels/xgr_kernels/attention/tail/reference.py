"""Tail attention by its definition, row by row in float64: the yardstick for every other backend."""

import math

import torch
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    anc: Tensor,
    rows: Tensor,
    tail_len: Tensor,
    o: Tensor,
    lse2: Tensor,
    scale: float,
) -> Tensor:
    """See `api.tail_attention_merge`."""
    group = q.shape[1] // k.shape[1]
    merged = torch.empty(q.shape, dtype=torch.float64)
    for r in range(q.shape[0]):
        own = range(int(tail_len[r]))
        keys = torch.stack([tail_k[t, anc[r, t]] for t in own] + [k[r]]).double()  # [n, Hkv, D]
        values = torch.stack([tail_v[t, anc[r, t]] for t in own] + [v[r]]).double()
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)  # [n, Hq, D]
        scores = torch.einsum("hd,nhd->hn", q[r].double(), keys) * scale
        shared = lse2[r].double().unsqueeze(1) * math.log(2)  # [Hq, 1]: the shared part weighs as one score
        weights = torch.cat([shared, scores], 1).softmax(1)
        merged[r] = weights[:, :1] * o[r].double() + torch.einsum("hn,nhd->hd", weights[:, 1:], values)
    for r in range(q.shape[0]):
        if tail_len[r] < tail_k.shape[0]:
            tail_k[tail_len[r], rows[r]] = k[r]
            tail_v[tail_len[r], rows[r]] = v[r]
    return merged.to(q.dtype)
