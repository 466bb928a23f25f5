"""Tail attention on CPU: a gather and a handful of vectorised torch operations for all rows at once.

The shared partial result enters the softmax as one more score, its log-sum-exp, whose value is o.
"""

import math

import torch
from torch import Tensor

LOG2_E = 1.0 / math.log(2.0)


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
    R, Hq, D = q.shape
    Hkv = k.shape[1]
    T = tail_k.shape[0]
    keys, values = k.unsqueeze(2), v.unsqueeze(2)  # [R, Hkv, 1, D]
    dead = None
    if T:
        steps = torch.arange(T)
        dead = steps >= tail_len.unsqueeze(1)  # [R, T]
        index = (anc.masked_fill(dead, 0) + steps * tail_k.shape[1]).flatten()
        keys = _with_tail(keys, tail_k, index, dead)
        values = _with_tail(values, tail_v, index, dead)  # [R, Hkv, T + 1, D]
        _store(tail_k, tail_v, k, v, rows, tail_len)
    queries = q.float().view(R, Hkv, Hq // Hkv, D)
    scores = torch.matmul(queries, keys.float().transpose(2, 3)) * (scale * LOG2_E)  # [R, Hkv, G, T + 1]
    if dead is not None:
        scores[..., :T].masked_fill_(dead.view(R, 1, 1, T), -math.inf)
    return (
        _merge(scores, values.float(), o.view(R, Hkv, -1, D), lse2.view(R, Hkv, -1, 1))
        .view(R, Hq, D)
        .to(q.dtype)
    )


def _with_tail(newest: Tensor, tail: Tensor, index: Tensor, dead: Tensor) -> Tensor:
    """[R, Hkv, T + 1, D]: the tail tokens, then the newest. Dead tokens read as 0, never as stale memory."""
    R, T = dead.shape
    tokens = tail.flatten(0, 1).index_select(0, index).view(R, T, *tail.shape[2:])
    tokens = tokens.masked_fill(dead.view(R, T, 1, 1), 0.0)
    return torch.cat([tokens.transpose(1, 2), newest], 2)


def _store(tail_k: Tensor, tail_v: Tensor, k: Tensor, v: Tensor, rows: Tensor, tail_len: Tensor) -> None:
    """Writes k[r], v[r] as row rows[r] of tail token tail_len[r], but for rows at their last step."""
    kept = (tail_len < tail_k.shape[0]).nonzero().flatten()
    index = tail_len[kept] * tail_k.shape[1] + rows[kept]
    tail_k.view(-1, *k.shape[1:]).index_copy_(0, index, k[kept])
    tail_v.view(-1, *v.shape[1:]).index_copy_(0, index, v[kept])


def _merge(scores: Tensor, values: Tensor, o: Tensor, lse2: Tensor) -> Tensor:
    """Base-2 softmax over shared part and tokens. scores [R, Hkv, G, n], values [R, Hkv, n, D] -> o."""
    top = torch.maximum(scores.amax(-1, keepdim=True), lse2)  # finite: the newest token always counts
    weights = torch.exp2(scores - top)
    shared = torch.exp2(lse2 - top)
    total = weights.sum(-1, keepdim=True) + shared
    return (torch.matmul(weights, values) + shared * o) / total
