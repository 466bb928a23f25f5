"""Attention and selection by their definitions in float64, fast enough for the sizes that are measured."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.beam_select.types import BeamBatch


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q [n, Hq, D], k, v [L, Hkv, D] -> o [n, Hq, D], lse2 [n, Hq]; row r sees the first seen[r] tokens."""
    n, Hq, D = q.shape
    group = Hq // k.shape[1]
    grouped = q.double().view(n, k.shape[1], group, D)
    scores = torch.einsum("ngad,lgd->ngal", grouped, k.double()) * scale
    if seen is not None:
        hidden = torch.arange(k.shape[0], device=q.device)[None] >= seen[:, None]  # [n, L]
        scores.masked_fill_(hidden[:, None, None], -math.inf)
    o = torch.einsum("ngal,lgd->ngad", scores.softmax(-1), v.double())
    lse2 = scores.logsumexp(-1) / math.log(2)
    return o.reshape(n, Hq, D), lse2.reshape(n, Hq)


def candidates(batch: BeamBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Row, token and request of every child of every beam, all int64; filters do not count here."""
    rows, tokens = [], []
    for b, trie in enumerate(batch.tries):
        level = batch.level[b]
        firsts = trie.lo[level][:-1] if len(trie.lo[level]) else np.arange(trie.leaves)
        for r in range(batch.row_offsets[b], batch.row_offsets[b + 1]):
            first, last = np.searchsorted(firsts, (batch.lo[r], batch.hi[r]))
            rows.append(np.full(last - first, r))
            tokens.append(trie.tokens[level][first:last])
    row = np.concatenate(rows)
    request = np.searchsorted(np.asarray(batch.row_offsets), row, side="right") - 1
    found = (row, np.concatenate(tokens), request)
    row_, token_, request_ = (torch.from_numpy(x.astype(np.int64)).to(device) for x in found)
    return row_, token_, request_


def best_scores(logits: Tensor, batch: BeamBatch) -> list[Tensor]:
    """Per request the scores of its best children in descending order, float64; whole-vocabulary softmax."""
    row, token, request = candidates(batch, logits.device)
    lse = torch.stack([x.double().logsumexp(-1) for x in logits])  # a row at a time: memory
    scores = torch.from_numpy(batch.scores).to(logits.device).double()[row]
    value = scores + logits[row, token].double() - lse[row]
    return [
        value[request == b].topk(min(width, int((request == b).sum()))).values
        for b, width in enumerate(batch.width)
    ]
