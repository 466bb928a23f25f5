"""Random prompts in pages, catalogs, and beams over them: what checks and measurements of kernels work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from beam_batches import Ask, build_batch, build_trie, random_filter
from lab import Lab
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.attention.paged import AttentionSizes, PagedAttention, Workspace
from xgr_kernels.beam_select.types import BeamBatch
from xgr_kernels.trie import Normaliser, Trie

PAGE = 16  # tokens, as the workers' default
SPARE = 3  # pages of a pool that belong to nobody


@dataclass
class Prompts:
    """KV of several prompts in shuffled pages; k and v [sets, P, PAGE, Hkv, D], sets as layers would be."""

    k: Tensor
    v: Tensor
    pages: list[NDArray[np.int32]]
    lengths: list[int]

    @property
    def page_entries(self) -> int:
        return sum(len(ids) for ids in self.pages)

    def tokens(self, request: int, which: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values [L, Hkv, D] of one prompt in float64."""
        ids = torch.from_numpy(self.pages[request]).long().to(self.k.device)
        k, v = (x[which].index_select(0, ids).flatten(0, 1) for x in (self.k, self.v))
        return k[: self.lengths[request]].double(), v[: self.lengths[request]].double()

    def poison(self) -> None:
        """NaN wherever no prompt's token is: nothing of it may be seen."""
        for x in (self.k, self.v):
            kept = torch.zeros(x.shape[1] * PAGE, dtype=torch.bool, device=x.device)
            for ids, length in zip(self.pages, self.lengths, strict=True):
                slots = (ids.astype(np.int64)[:, None] * PAGE + np.arange(PAGE)).reshape(-1)[:length]
                kept[torch.from_numpy(slots).to(x.device)] = True
            x.flatten(1, 2)[:, ~kept] = torch.nan


def make_prompts(
    lab: Lab, lengths: Sequence[int], kv_heads: int, head_dim: int, sets: int, dtype: torch.dtype
) -> Prompts:
    """Random keys and values of prompts of these lengths."""
    counts = [-(-length // PAGE) for length in lengths]
    order = lab.random.permutation(sum(counts) + SPARE).astype(np.int32)
    pages = np.split(order[: sum(counts)], np.cumsum(counts)[:-1])
    shape = (sets, len(order), PAGE, kv_heads, head_dim)
    return Prompts(lab.randn(*shape, dtype=dtype), lab.randn(*shape, dtype=dtype), pages, list(lengths))


def make_attention(
    lab: Lab, prompts: Prompts, q_heads: int, rows: Sequence[int], causal: bool, algorithm: str
) -> PagedAttention:
    """Attention of rows[b] query rows to each prompt, planned."""
    _, _, _, kv_heads, head_dim = prompts.k.shape
    sizes = AttentionSizes(
        q_heads, kv_heads, head_dim, PAGE, prompts.k.dtype, lab.where, scale=head_dim**-0.5
    )
    total, requests, entries = sum(rows), len(rows), max(1, prompts.page_entries)
    workspace = Workspace(sizes, rows=total, requests=requests, page_entries=entries)
    attention = PagedAttention(
        sizes,
        workspace,
        rows=total,
        requests=requests,
        page_entries=entries,
        causal=causal,
        algorithm=algorithm,
    )
    attention.plan(np.cumsum([0, *rows]).tolist(), prompts.pages, prompts.lengths)
    return attention


def make_trie(
    random: np.random.Generator, items: int, codebook: int, depth: int, skewed: bool, spread: bool = False
) -> Trie:
    """A catalog of up to `items` distinct SIDs. Skewed: Zipf's law; spread: a token range per level."""
    size = (items + items // 2, depth)
    draws = random.zipf(1.2, size) % codebook if skewed else random.integers(0, codebook, size)
    sids = np.unique(draws.astype(np.int32), axis=0)
    sids = sids[random.permutation(len(sids))[:items]]
    return build_trie(sids + (np.arange(depth) * codebook if spread else 0))


def popular_batch(
    random: np.random.Generator, trie: Trie, level: int, requests: int, width: int
) -> BeamBatch:
    """`requests` of `width` beams each at distinct nodes above `level`, drawn by their number of items."""
    batch = make_batch(random, trie, level, [width] * requests, width)
    if level == 0:
        return batch
    first = trie.lo[level - 1]
    count, share = len(batch.lo) // requests, np.diff(first) / trie.leaves
    nodes = [random.choice(len(share), count, replace=False, p=share) for _ in range(requests)]
    chosen = np.concatenate(nodes)
    return replace(batch, lo=first[chosen].astype(np.int32), hi=first[chosen + 1].astype(np.int32))


def make_batch(
    random: np.random.Generator,
    trie: Trie,
    level: int,
    widths: Sequence[int],
    rows: int,
    filters: Sequence[str] = ("none",),
    mode: Normaliser = "vocab",
) -> BeamBatch:
    """One request per width, each with up to `rows` beams; the kinds of filters go round."""
    kinds = [filters[b % len(filters)] for b in range(len(widths))]
    return build_batch(
        random,
        [
            Ask(trie, level, width, rows, random_filter(random, trie.leaves, kind), mode)
            for width, kind in zip(widths, kinds, strict=True)
        ],
    )
