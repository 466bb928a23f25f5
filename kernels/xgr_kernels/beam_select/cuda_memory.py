"""Beams, catalogs and filters in device memory, and the row of the request table that names them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.beam_select import cuda_kernels as kernels
from xgr_kernels.trie import MAX_DENIED, Int32, LeafFilter, Trie

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


class PlacedTrie:
    """A trie in a block of device memory; the addresses in a request table are good while the block lives."""

    def __init__(self, trie: Trie, memory: Tensor) -> None:
        """Lays its arrays out in `memory` [`words_of(trie)` at least] int32; `parts` are still to be copied.

        Its tokens are of a vocabulary that fits the keys of candidates.
        """
        self.leaves = trie.leaves
        self.parts: list[tuple[int, Int32]] = []
        """Where each array begins in `memory`, and what it holds: of each level `tokens`, then `lo`."""
        self._columns: list[tuple[int, int, int]] = []
        at = 0
        for tokens, lo in zip(trie.tokens, (*trie.lo[:-1], trie.lo[-1][:0]), strict=True):
            places = []
            for values in (tokens, lo):
                self.parts.append((at, values))
                places.append(memory.data_ptr() + at * memory.itemsize if len(values) else 0)
                at += aligned(len(values))
            self._columns.append((len(tokens), places[0], places[1]))

    def columns(self, level: int) -> tuple[int, int, int]:
        """(nodes, address of tokens, address of lo) of a level; the last level has no lo."""
        return self._columns[level]


def words_of(trie: Trie) -> int:
    """Of four bytes, that a trie takes in device memory."""
    return sum(aligned(len(values)) for values in (*trie.tokens, *trie.lo[:-1]))


class DeviceTrie(PlacedTrie):
    """A trie in memory of its own, copied at once."""

    def __init__(self, trie: Trie, device: torch.device | str) -> None:
        """See `PlacedTrie`. Raises: ValueError if a token does not fit the keys of candidates."""
        for tokens in trie.tokens:
            if tokens.size and int(tokens.max()) >= MOST_TOKENS:
                raise ValueError(f"token {tokens.max()} is too large: selection on a GPU takes {MOST_TOKENS}")
        self._memory = torch.empty(words_of(trie), dtype=torch.int32, device=device)
        super().__init__(trie, self._memory)
        for at, values in self.parts:
            self._memory[at : at + len(values)].copy_(torch.from_numpy(np.array(values, np.int32)))


class FilterColumns(NamedTuple):
    """A filter as the request table names it; all zero lets every leaf live."""

    bits: int = 0  # address
    rank: int = 0  # address
    deny: int = 0  # address
    denied: int = 0  # entries


NO_FILTER = FilterColumns()


class DeviceFilters:
    """Memory for the filter of each request slot, filled in stream order."""

    def __init__(self, requests: int, leaves: int, device: torch.device | str) -> None:
        """Takes about leaves / 7.5 bytes a slot, and as much pinned host memory if the device is a GPU.

        A slot becomes larger when it is given the filter of a larger catalog.
        """
        self._device = torch.device(device)
        self._memory = [self._room(leaves) for _ in range(requests)]
        self._copied: list[torch.cuda.Event] = []
        if self._device.type == "cuda":
            self._copied = [torch.cuda.Event() for _ in range(requests)]  # type: ignore[no-untyped-call]

    def memory(self, slot: int) -> Tensor:
        """What a slot holds: launches that read it must be over before `put` is called for it again."""
        return self._memory[slot].memory

    def put(self, slot: int, leaves: LeafFilter, kept: FilterColumns = NO_FILTER) -> FilterColumns:
        """Copies a filter into its slot, in the order of the current stream.

        kept: where its bits lie already. Waits only while the copy before it to the same slot has not run.
        Raises: ValueError if the filter denies too many leaves.
        """
        if leaves.deny.size > MAX_DENIED:
            raise ValueError(f"a filter denies {leaves.deny.size} leaves, {MAX_DENIED} at most can be listed")
        for copied in self._copied[slot : slot + 1]:
            copied.synchronize()
        if leaves.bits.size > self._memory[slot].rank_at and not kept.bits:
            self._memory[slot] = self._room(grown(64 * leaves.bits.size))
        room, bits, rank = self._memory[slot], kept.bits, kept.rank
        if not bits:
            bits = room.copy(0, leaves.bits.astype(np.uint64, copy=False))
            rank = room.copy(room.rank_at, leaves.rank.astype(np.uint32, copy=False))
        deny = room.copy(room.deny_at, leaves.deny.astype(np.int32, copy=False))
        for copied in self._copied[slot : slot + 1]:
            copied.record()
        return FilterColumns(bits, rank, deny, leaves.deny.size)

    def _room(self, leaves: int) -> "_FilterRoom":
        bits, ranks = -(-leaves // 64), -(-leaves // 512) + 1
        deny_at = bits + -(-ranks // 2)
        words = deny_at + MAX_DENIED // 2
        memory = torch.zeros(words, dtype=torch.int64, device=self._device)
        staging = torch.zeros(words, dtype=torch.int64, pin_memory=True) if memory.is_cuda else memory
        return _FilterRoom(memory, staging, bits, deny_at)


class _FilterRoom(NamedTuple):
    """Of one slot."""

    memory: Tensor  # [words] int64
    staging: Tensor  # [words] int64, in host memory
    rank_at: int  # in words of 8 bytes, each for two ranks or two denied leaves
    deny_at: int

    def copy(self, at: int, values: np.ndarray) -> int:
        """The address of a copy at word `at`, 0 for no values."""
        if not values.size:
            return 0
        place = slice(at, at + -(-values.nbytes // 8))
        staging, memory = self.staging[place], self.memory[place]
        staging.numpy().view(values.dtype)[: values.size] = values
        if memory.is_cuda:
            memory.copy_(staging, non_blocking=True)
        return memory.data_ptr()


def grown(size: int) -> int:
    """Room for `size`, and for a quarter more: most changes of a catalog keep within it."""
    return size + size // 4


def request_row(
    *,
    row_begin: int,
    row_end: int,
    out_begin: int,
    width: int,
    level: int,
    legal: bool,
    trie: PlacedTrie,
    leaves: FilterColumns = NO_FILTER,
    out_rows: int | None = None,
    first_token: int = 0,
    passes_over: bool = False,
) -> np.ndarray:
    """A request's row [COLUMNS] int64 of the table: its beams are rows [row_begin, row_end) of `now`.

    Its children take rows of `next` from `out_begin`, at most min(width, out_rows); those of the `out_rows`
    that stay empty become dead. The default is what a level can fill, min(width, its nodes). Addresses of
    `trie` and `leaves` must stay good until the step has run. A row of zeros is an unused slot. Column 0
    of the logits is that of `first_token`. `passes_over`: more nodes may live than are kept.
    """
    nodes, tokens, lo = trie.columns(level)
    rows = min(width, nodes) if out_rows is None else out_rows
    row = [row_begin, row_end, out_begin, out_begin + rows, min(width, rows), legal, level, nodes, tokens, lo]
    return np.array([*row, *leaves, first_token, passes_over], np.int64)
