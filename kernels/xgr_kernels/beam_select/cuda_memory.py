"""Beams, catalogs and filters in device memory, and the row of the request table that names them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.beam_select import cuda_kernels as kernels
from xgr_kernels.trie import MAX_DENIED, LeafFilter, Trie

COLUMNS: int = kernels.COLUMNS.value  # of a request's row in the table
MOST_TOKENS: int = kernels.MOST_TOKENS.value  # of a vocabulary
ALIGNED = 64  # columns: rows of logits begin at multiples of 256 bytes


def aligned(columns: int) -> int:
    """The least multiple of `ALIGNED` that is at least `columns`."""
    return -(-columns // ALIGNED) * ALIGNED


def logit_rows(rows: int, vocab: int, device: torch.device | str) -> Tensor:
    """Memory for logits, [rows, aligned(vocab)] float32: write only the first `vocab` columns.

    The others are minus infinity, which no sum and no choice sees. Selection takes rows whole. Rows of just
    as many columns as there are tokens would be read 4 bytes at a time, where that is no multiple of 16.
    """
    return torch.full((rows, aligned(vocab)), -torch.inf, dtype=torch.float32, device=device)


class BeamState:
    """Beams in device memory. A row with lo >= hi is dead: it has no children. New states are dead."""

    def __init__(self, rows: int, tail_tokens: int, device: torch.device | str) -> None:
        """`packed` [rows, 4 + T] int32 holds everything; the rest are views of it."""
        self.packed = torch.zeros(
            rows, kernels.ANCESTORS.value + tail_tokens, dtype=torch.int32, device=device
        )
        self.token = self.packed[:, kernels.TOKEN.value]  # [rows]
        self.score = self.packed.view(torch.float32)[:, kernels.SCORE.value]  # [rows] float32, natural log
        self.lo = self.packed[:, kernels.FIRST_LEAF.value]  # [rows]
        self.hi = self.packed[:, kernels.END_LEAF.value]  # [rows]
        self.anc = self.packed[:, kernels.ANCESTORS.value :]  # [rows, T]

    @property
    def tail_tokens(self) -> int:
        """T, the width of the ancestor table."""
        return self.anc.shape[1]


class DeviceTrie:
    """A catalog's trie in device memory; the addresses in a request table are good while it lives."""

    def __init__(self, trie: Trie, device: torch.device | str) -> None:
        """Copies the arrays. Raises: ValueError if a token does not fit the keys of candidates."""
        for tokens in trie.tokens:
            if tokens.size and int(tokens.max()) >= MOST_TOKENS:
                raise ValueError(f"token {tokens.max()} is too large: selection on a GPU takes {MOST_TOKENS}")
        self.leaves = trie.leaves
        self.tokens = [_to_device(tokens, device) for tokens in trie.tokens]
        self.lo = [_to_device(lo, device) for lo in trie.lo]

    def columns(self, level: int) -> tuple[int, int, int]:
        """(nodes, address of tokens, address of lo) of a level; the last level has no lo."""
        tokens, lo = self.tokens[level], self.lo[level]
        return len(tokens), tokens.data_ptr(), 0 if level == len(self.tokens) - 1 else lo.data_ptr()


class FilterColumns(NamedTuple):
    """A filter as the request table names it; all zero lets every leaf live."""

    bits: int = 0  # address
    rank: int = 0  # address
    deny: int = 0  # address
    denied: int = 0  # entries


NO_FILTER = FilterColumns()


class DeviceFilters:
    """Memory for the filter of each request slot, fixed at the start and filled in stream order."""

    def __init__(self, requests: int, leaves: int, device: torch.device | str) -> None:
        """Takes about leaves / 7.5 bytes a slot, and as much pinned host memory if the device is a GPU."""
        self.leaves = leaves
        bits, ranks = -(-leaves // 64), -(-leaves // 512) + 1
        self._rank_at = bits  # in words of 8 bytes, each for two ranks or two denied leaves
        self._deny_at = bits + -(-ranks // 2)
        words = self._deny_at + MAX_DENIED // 2
        self.memory = torch.zeros(requests, words, dtype=torch.int64, device=device)
        self._staging = self.memory
        self._copied: list[torch.cuda.Event] = []
        if self.memory.is_cuda:
            self._staging = torch.zeros(requests, words, dtype=torch.int64, pin_memory=True)
            self._copied = [torch.cuda.Event() for _ in range(requests)]  # type: ignore[no-untyped-call]

    def put(self, slot: int, leaves: LeafFilter) -> FilterColumns:
        """Copies a filter into its slot, in the order of the current stream.

        Waits only while the copy before it to the same slot has not run. Raises: ValueError if the filter is
        of a larger catalog than the slots were made for, or denies too many leaves.
        """
        if leaves.bits.size > self._rank_at or leaves.deny.size > MAX_DENIED:
            raise ValueError(
                f"a filter of {leaves.bits.size} words and {leaves.deny.size} denied leaves does not fit "
                f"slots for {self.leaves} leaves and {MAX_DENIED} denied"
            )
        for copied in self._copied[slot : slot + 1]:
            copied.synchronize()
        bits = self._copy(slot, 0, leaves.bits.astype(np.uint64, copy=False))
        rank = self._copy(slot, self._rank_at, leaves.rank.astype(np.uint32, copy=False))
        deny = self._copy(slot, self._deny_at, leaves.deny.astype(np.int32, copy=False))
        for copied in self._copied[slot : slot + 1]:
            copied.record()
        return FilterColumns(bits, rank, deny, leaves.deny.size)

    def _copy(self, slot: int, at: int, values: np.ndarray) -> int:
        """The address of a copy at word `at` of the slot, 0 for no values."""
        if not values.size:
            return 0
        place = slice(at, at + -(-values.nbytes // 8))
        staging, memory = self._staging[slot, place], self.memory[slot, place]
        staging.numpy().view(values.dtype)[: values.size] = values
        if memory.is_cuda:
            memory.copy_(staging, non_blocking=True)
        return memory.data_ptr()


def request_row(
    *,
    row_begin: int,
    row_end: int,
    out_begin: int,
    width: int,
    level: int,
    legal: bool,
    trie: DeviceTrie,
    leaves: FilterColumns = NO_FILTER,
    out_rows: int | None = None,
    first_token: int = 0,
) -> np.ndarray:
    """A request's row [COLUMNS] int64 of the table: its beams are rows [row_begin, row_end) of `now`.

    Its children take rows of `next` from `out_begin`, at most min(width, out_rows); those of the `out_rows`
    that stay empty become dead. The default is what a level can fill, min(width, its nodes). Addresses of
    `trie` and `leaves` must stay good until the step has run. A row of zeros is an unused slot. Column 0
    of the logits is that of `first_token`.
    """
    nodes, tokens, lo = trie.columns(level)
    rows = min(width, nodes) if out_rows is None else out_rows
    row = [row_begin, row_end, out_begin, out_begin + rows, min(width, rows), legal, level, nodes, tokens, lo]
    return np.array([*row, *leaves, first_token], np.int64)


def _to_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.array(values, np.int32)).to(device)
