"""Batches for beam selection: random tries, filters, beams and logits, and what it means to be equal."""

from dataclasses import dataclass, field

import numpy as np
import torch

from xgr_kernels.beam_select import BeamBatch, Selection
from xgr_kernels.trie import LeafFilter, Normaliser, Trie, no_filter


def build_trie(sids: np.ndarray) -> Trie:
    """The leaf-range trie of an SID matrix [n, depth]; duplicates are dropped."""
    sids = np.unique(sids, axis=0).astype(np.int32)
    tokens, lo = [], []
    starts = np.zeros(len(sids), bool)
    for level in range(sids.shape[1]):
        starts |= np.r_[True, sids[1:, level] != sids[:-1, level]] if len(sids) else starts
        first = np.flatnonzero(starts)
        tokens.append(sids[first, level])
        last = level == sids.shape[1] - 1
        lo.append(np.empty(0, np.int32) if last else np.r_[first, len(sids)].astype(np.int32))
    return Trie(len(sids), tuple(tokens), tuple(lo))


def build_filter(alive: np.ndarray, deny: np.ndarray | None = None) -> LeafFilter:
    """bits and ranks of a mask over leaves [n]; `deny` must be alive."""
    padded = np.zeros(-(-len(alive) // 512) * 512, np.uint8)
    padded[: len(alive)] = alive
    rank = np.r_[0, np.cumsum(padded.reshape(-1, 512).sum(1, dtype=np.int64))].astype(np.uint32)
    bits = np.packbits(padded, bitorder="little").view(np.uint64)[: -(-len(alive) // 64)]
    return LeafFilter(bits, rank, np.sort(deny if deny is not None else []).astype(np.int32))


def random_trie(rng: np.random.Generator, leaves: int, depth: int, V: int, skew: float = 0.0) -> Trie:
    """Random SIDs; with skew > 0 a few tokens take most of the leaves."""
    draws = rng.random((leaves, depth)) ** (1 + skew)
    return build_trie((draws * V).astype(np.int32))


def random_filter(rng: np.random.Generator, leaves: int, kind: str) -> LeafFilter:
    alive = rng.random(leaves) < (0.5 if "bits" in kind else 1.0)
    allowed = np.flatnonzero(alive)
    deny = rng.choice(allowed, min(len(allowed), leaves // 4, 256), replace=False) if "deny" in kind else None
    if kind == "none":
        return no_filter()
    if kind == "all denied":
        return build_filter(np.zeros(leaves, bool))
    made = build_filter(alive, deny)
    return made if "bits" in kind else no_filter()._replace(deny=made.deny)


@dataclass
class Ask:
    """One request of a test batch: `rows` beams, distinct nodes of the level above."""

    trie: Trie
    level: int
    width: int
    rows: int = 10**9
    leaves: LeafFilter = field(default_factory=no_filter)
    mode: Normaliser = "vocab"


def build_batch(rng: np.random.Generator, asks: list[Ask]) -> BeamBatch:
    nodes = [_beams(rng, ask) for ask in asks]
    packed = np.concatenate([*nodes, np.empty((0, 2), np.int32)])
    return BeamBatch(
        row_offsets=np.cumsum([0] + [len(n) for n in nodes]).tolist(),
        level=[ask.level for ask in asks],
        width=[ask.width for ask in asks],
        tries=[ask.trie for ask in asks],
        filters=[ask.leaves for ask in asks],
        normalisers=[ask.mode for ask in asks],
        scores=-rng.exponential(5, len(packed)).astype(np.float32),
        lo=packed[:, 0],
        hi=packed[:, 1],
    )


def _beams(rng: np.random.Generator, ask: Ask) -> np.ndarray:
    if ask.level == 0:
        return np.array([[0, ask.trie.leaves]], np.int32)[: ask.rows]
    first = ask.trie.lo[ask.level - 1]
    chosen = rng.permutation(len(first) - 1)[: ask.rows]
    return np.stack([first[chosen], first[chosen + 1]], 1).astype(np.int32)


def random_logits(rng: np.random.Generator, batch: BeamBatch, V: int, step: float = 0.0) -> torch.Tensor:
    x = rng.normal(0, 3, (batch.row_offsets[-1], V)).astype(np.float32)
    return torch.from_numpy(np.round(x / step).astype(np.float32) * np.float32(step) if step else x)


def assert_equal(got: Selection, want: Selection) -> None:
    """Bit for bit, but for what early termination saved."""
    for name in ("offsets", "invalid", "overflow", "parent", "token", "lo", "hi", "score", "elements_total"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
