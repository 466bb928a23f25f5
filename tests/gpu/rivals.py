"""What others would do with the same inputs: other ways to attend, and other ways to select."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from inputs import PAGE, Prompts
from lab import Lab
from results import Figures
from torch import Tensor

from xgr_kernels.attention.paged.cuda import library
from xgr_kernels.beam_select.types import BeamBatch


@contextmanager
def may_fail(figures: Figures, name: str) -> Iterator[None]:
    """What a rival raises is noted, and fails nothing; a wrong result does."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        figures.note(name, raised=f"{type(error).__name__}: {error}".splitlines()[0])


WORKSPACE = 256 << 20  # twice what the library recommends
MOST_PADDED = 24 << 30  # bytes of a padded trie; beyond, it is said not to fit


class AttentionRival(Protocol):
    """Attention of all beams of all requests to their prompts."""

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor) -> Tensor:
        """q [R, Hq, D], pages [P, PAGE, Hkv, D] -> o [R, Hq, D]."""
        ...

    def own(self, k_pages: Tensor, v_pages: Tensor, r: int) -> tuple[Tensor, Tensor]:
        """Keys and values [n, Hkv, D] that row r sees beside its prompt."""
        ...


def _int32s(values: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    return torch.from_numpy(np.asarray(values).astype(np.int32)).to(device)


def _workspace(lab: Lab) -> Tensor:
    return torch.zeros(WORKSPACE if lab.cuda else 1, dtype=torch.uint8, device=lab.where)


class PerBeamDecode:
    """Every beam is a sequence of its own, whose page table repeats its prompt's: the naive way."""

    tensor_cores = False

    def __init__(self, lab: Lab, prompts: Prompts, q_heads: int, rows: list[int]) -> None:
        _, _, _, kv_heads, head_dim = prompts.k.shape
        counts = np.repeat([len(ids) for ids in prompts.pages], rows)
        table = np.concatenate([np.tile(ids, n) for ids, n in zip(prompts.pages, rows, strict=True)])
        last = np.repeat([(length - 1) % PAGE + 1 for length in prompts.lengths], rows)
        self._wrapper: Any = library().BatchDecodeWithPagedKVCacheWrapper(
            _workspace(lab), "NHD", use_tensor_cores=self.tensor_cores
        )
        self._wrapper.plan(
            _int32s(np.cumsum([0, *counts])),
            _int32s(table, lab.where),
            _int32s(last),
            q_heads,
            kv_heads,
            head_dim,
            PAGE,
            q_data_type=prompts.k.dtype,
            kv_data_type=prompts.k.dtype,
            sm_scale=head_dim**-0.5,
        )

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor) -> Tensor:
        o: Tensor = self._wrapper.run(q, (k_pages, v_pages))
        return o

    def own(self, k_pages: Tensor, v_pages: Tensor, r: int) -> tuple[Tensor, Tensor]:
        """None."""
        return k_pages[0, :0], v_pages[0, :0]


class PerBeamTensorCores(PerBeamDecode):
    """The same on tensor cores, which packs the query heads of a group."""

    tensor_cores = True


class Cascade:
    """The library's cascade as it is shipped: a level of prompts, and one of a page for each beam's token.

    It does the work of shared attention, tail and merge.
    """

    def __init__(self, lab: Lab, prompts: Prompts, q_heads: int, rows: list[int]) -> None:
        _, P, _, kv_heads, head_dim = prompts.k.shape
        R = sum(rows)
        # A beam's own token lies at the beginning of some page: which one does not matter to the time.
        self._own = np.arange(R) % P
        self._wrapper: Any = library().MultiLevelCascadeAttentionWrapper(2, _workspace(lab), "NHD")
        counts = [len(ids) for ids in prompts.pages]
        last = [(length - 1) % PAGE + 1 for length in prompts.lengths]
        self._wrapper.plan(
            [_int32s(np.cumsum([0, *rows])), _int32s(np.arange(R + 1))],
            [_int32s(np.cumsum([0, *counts])), _int32s(np.arange(R + 1))],
            [_int32s(np.concatenate(prompts.pages), lab.where), _int32s(self._own, lab.where)],
            [_int32s(last), _int32s(np.ones(R))],
            q_heads,
            kv_heads,
            head_dim,
            PAGE,
            sm_scale=head_dim**-0.5,
            q_data_type=prompts.k.dtype,
            kv_data_type=prompts.k.dtype,
        )

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor) -> Tensor:
        o: Tensor = self._wrapper.run(q, (k_pages, v_pages))
        return o

    def own(self, k_pages: Tensor, v_pages: Tensor, r: int) -> tuple[Tensor, Tensor]:
        """The first token of the row's page."""
        return k_pages[self._own[r], :1], v_pages[self._own[r], :1]


ATTENTION: dict[str, Callable[[Lab, Prompts, int, list[int]], AttentionRival]] = {
    "per-beam decode": PerBeamDecode,
    "per-beam decode, tensor cores": PerBeamTensorCores,
    "cascade as shipped": Cascade,
}


class FlatTopK:
    """Log-softmax of all logits, a ready-made mask of legal tokens, and one topk over rows x vocabulary."""

    def __init__(self, lab: Lab, batch: BeamBatch, vocab: int, row: Tensor, token: Tensor) -> None:
        R, B = batch.row_offsets[-1], len(batch.width)
        self._B, self._W = B, min(batch.width[0], R // B * vocab)
        self._scores = torch.from_numpy(batch.scores).to(lab.where)[:, None]
        self._illegal = torch.ones(R, vocab, dtype=torch.bool, device=lab.where)
        self._illegal[row, token] = False

    def select(self, logits: Tensor) -> Tensor:
        """[B, W] scores, best first."""
        total = logits.log_softmax(-1).add_(self._scores).masked_fill_(self._illegal, -torch.inf)
        return total.view(self._B, -1).topk(self._W).values


class PaddedTrie:
    """Children of every node padded to the widest branch, gathered as one rectangle, as STATIC does."""

    def __init__(self, lab: Lab, batch: BeamBatch, vocab: int, row: Tensor, token: Tensor) -> None:
        trie, level = batch.tries[0], batch.level[0]
        firsts = trie.lo[level][:-1] if len(trie.lo[level]) else np.arange(trie.leaves)
        above = trie.lo[level - 1] if level else np.array([0, trie.leaves])
        edges = np.searchsorted(firsts, above)  # [nodes above + 1]
        counts = np.diff(edges)
        widest = int(counts.max())
        if 4 * widest * len(counts) > MOST_PADDED:
            raise MemoryError(f"{len(counts)} nodes x {widest} children: the padded trie does not fit")
        self.widest = widest
        self._padded = torch.full((len(counts), widest), -1, dtype=torch.int32, device=lab.where)
        node = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(lab.where)
        place = np.arange(len(firsts)) - np.repeat(edges[:-1], counts)
        self._padded[node, torch.from_numpy(place).to(lab.where)] = torch.from_numpy(
            np.asarray(trie.tokens[level])
        ).to(lab.where, torch.int32)
        self._node = torch.from_numpy(np.searchsorted(above, batch.lo, side="right") - 1).to(lab.where)
        self._scores = torch.from_numpy(batch.scores).to(lab.where)[:, None]
        self._B = len(batch.width)
        self._W = min(batch.width[0], len(batch.lo) // self._B * widest)

    def select(self, logits: Tensor) -> Tensor:
        """[B, W] scores, best first."""
        children = self._padded[self._node].long()  # [R, widest]
        found = logits.gather(1, children.clamp(min=0)) - logits.logsumexp(-1, keepdim=True) + self._scores
        found.masked_fill_(children < 0, -torch.inf)
        return found.view(self._B, -1).topk(self._W).values


SELECTION: dict[str, type[FlatTopK] | type[PaddedTrie]] = {
    "flat topk": FlatTopK,
    "padded trie": PaddedTrie,
}
