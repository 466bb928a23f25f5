"""Beam selection by its definition: float64 log-sum-exp, full sort, Python loops. Backends must equal it."""

import numpy as np
from torch import Tensor

from xgr_kernels.beam_select.types import BeamBatch, Selection
from xgr_kernels.trie import LeafFilter, Trie


def select(logits: Tensor, batch: BeamBatch, lse: np.ndarray | None = None) -> Selection:
    """See `api.beam_select`. `lse` [R] float32 replaces the log-sum-exp, to compare orders bit by bit."""
    x = logits.numpy()
    B = len(batch.row_offsets) - 1
    chosen: list[
        np.ndarray
    ] = []  # per request, rows of (score, token, parent, lo, hi) in float64: all are exact
    invalid, total = np.zeros(B, bool), np.zeros(B, np.int64)
    for b in range(B):
        candidates: list[tuple[float, int, int, int, int]] = []
        start = int(batch.row_offsets[b])
        for r in range(start, int(batch.row_offsets[b + 1])):
            first, last = children(batch.tries[b], batch.level[b], int(batch.lo[r]), int(batch.hi[r]))
            total[b] += last - first
            live = live_children(batch.tries[b], batch.filters[b], batch.level[b], first, last)
            row_lse = row_log_sum_exp(x[r], live, batch.normalisers[b]) if lse is None else lse[r]
            if _is_invalid(x[r], float(batch.scores[r]), live, float(row_lse)):
                invalid[b] = True
            elif not invalid[b]:
                candidates += _row_candidates(x[r], live, batch.scores[r], row_lse, r - start)
        kept = [] if invalid[b] else sorted(candidates, key=lambda c: (-c[0], c[2], c[1]))[: batch.width[b]]
        chosen.append(np.array(kept, np.float64).reshape(-1, 5))
    return _pack(chosen, invalid, total)


def children(trie: Trie, level: int, lo: int, hi: int) -> tuple[int, int]:
    """The range of nodes of `level` whose first leaf lies in [lo, hi)."""
    if level == len(trie.tokens) - 1:
        return lo, hi
    first_leaf = trie.lo[level][:-1]
    return int(np.searchsorted(first_leaf, lo)), int(np.searchsorted(first_leaf, hi))


def node_range(trie: Trie, level: int, node: int) -> tuple[int, int]:
    """The leaves [lo, hi) under a node of `level`."""
    if level == len(trie.tokens) - 1:
        return node, node + 1
    return int(trie.lo[level][node]), int(trie.lo[level][node + 1])


def is_alive(leaves: LeafFilter, leaf: int) -> bool:
    """Whether one leaf lives under the filter; reads the bits alone, so that it also checks the ranks."""
    allowed = len(leaves.bits) == 0 or (int(leaves.bits[leaf // 64]) >> (leaf % 64)) & 1 == 1
    return allowed and leaf not in leaves.deny


def live_children(
    trie: Trie, leaves: LeafFilter, level: int, first: int, last: int
) -> list[tuple[int, int, int]]:
    """(token, lo, hi) of the nodes [first, last) of `level` that have a live leaf."""
    live = []
    for node in range(first, last):
        lo, hi = node_range(trie, level, node)
        if any(is_alive(leaves, leaf) for leaf in range(lo, hi)):
            live.append((int(trie.tokens[level][node]), lo, hi))
    return live


def row_log_sum_exp(row: np.ndarray, live: list[tuple[int, int, int]], over: str) -> np.float32:
    """Natural log-sum-exp over a row [V] or over its live children, in float64, rounded once; 0 if given."""
    if over == "given":
        return np.float32(0)
    x = row.astype(np.float64) if over == "vocab" else row[[token for token, _, _ in live]].astype(np.float64)
    top = x.max(initial=-np.inf)
    if not np.isfinite(top):
        return np.float32(top)
    return np.float32(top + np.log(np.exp(x - top).sum()))


def _is_invalid(row: np.ndarray, score: float, live: list[tuple[int, int, int]], lse: float) -> bool:
    bad_input = (
        bool(np.isnan(row).any()) or bool(np.isposinf(row).any()) or np.isnan(score) or score == np.inf
    )
    return bad_input or (len(live) > 0 and not np.isfinite(lse))


def _row_candidates(
    row: np.ndarray, live: list[tuple[int, int, int]], score: np.float32, lse: np.float32, parent: int
) -> list[tuple[float, int, int, int, int]]:
    """(score, token, parent, lo, hi) of the live children with a finite logit; scores in float32, -0 as 0."""
    found = []
    for token, lo, hi in live:
        if np.isfinite(row[token]):
            value = np.float32(score) + np.float32(row[token] - np.float32(lse)) + np.float32(0)
            found.append((float(value), token, parent, lo, hi))
    return found


def _pack(chosen: list[np.ndarray], invalid: np.ndarray, total: np.ndarray) -> Selection:
    packed = np.concatenate([*chosen, np.empty((0, 5))])
    return Selection(
        offsets=np.cumsum([0] + [len(kept) for kept in chosen]).astype(np.int64),
        score=packed[:, 0].astype(np.float32),
        token=packed[:, 1].astype(np.int32),
        parent=packed[:, 2].astype(np.int32),
        lo=packed[:, 3].astype(np.int32),
        hi=packed[:, 4].astype(np.int32),
        invalid=invalid,
        overflow=np.zeros(len(chosen), bool),
        rows_skipped=np.zeros(len(chosen), np.int64),
        elements_visited=total.copy(),
        elements_total=total,
    )
