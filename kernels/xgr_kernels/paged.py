"""FlashInfer's paged attention: planned on the host once per launch, run once per layer, fit for CUDA graphs.

Shared attention is this with causal=False and beams as query rows; prefill is this with causal=True, where
the last rows of a request are its last tokens, so that a chunk behind a cached prefix is one call.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.paged_rules import (
    ALGORITHMS,
    AttentionSizes,
    choose_algorithm,
    device_facts,
    float_bytes,
    int_bytes,
)

__all__ = ["AttentionSizes", "PagedAttention", "Workspace", "choose_algorithm", "device_facts"]

PageIds = NDArray[np.int32]


class Event(Protocol):
    """The part of torch.cuda.Event that the ring needs."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


class Staging:
    """Host memory of one plan in flight: what the device copies from after `plan` has returned."""

    def __init__(self, requests: int, page_entries: int, int_bytes: int, device: torch.device) -> None:
        pinned = device.type == "cuda"

        def int32s(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, pin_memory=pinned)

        self.row_offsets = int32s(requests + 1)
        self.page_offsets = int32s(requests + 1)
        self.last_page = int32s(requests)  # tokens in the last page
        self.lengths = int32s(requests)
        self.pages = int32s(page_entries)
        self.plan = torch.zeros(int_bytes, dtype=torch.uint8, pin_memory=pinned)
        self.copied = new_event(device)

    def fill(
        self,
        row_offsets: NDArray[np.int64],
        pages: Sequence[PageIds],
        lengths: NDArray[np.int64],
        page_size: int,
    ) -> int:
        """All slots, those behind the given requests with zero rows and keys. Returns how many pages."""
        B = len(lengths)
        counts = -(-lengths // page_size)
        _extend(self.row_offsets, row_offsets)
        _extend(self.page_offsets, np.concatenate([[0], np.cumsum(counts)]))
        _extend(self.lengths, lengths, fill=0)
        _extend(self.last_page, lengths - np.maximum(counts - 1, 0) * page_size, fill=0)
        total = int(self.page_offsets[B])
        if total:
            kept = [ids[:count] for ids, count in zip(pages, counts, strict=True)]
            np.concatenate(kept, out=self.pages.numpy()[:total])
        return total


class Workspace:
    """Memory that all buckets of one stream share: only one of their launches runs at a time.

    `rows`, `requests` and `page_entries` (pages of all requests together) are the largest of any bucket.
    `depth` plans may be in flight; one more waits until the device has copied the oldest.
    """

    def __init__(
        self, sizes: AttentionSizes, *, rows: int, requests: int, page_entries: int, depth: int = 16
    ) -> None:
        sizes.check()
        multiprocessors, _ = device_facts(sizes.device)
        self.rows, self.requests, self.page_entries = rows, requests, page_entries
        self.int_bytes = int_bytes(sizes, rows, requests, multiprocessors)
        size = float_bytes(sizes, rows, requests, multiprocessors)
        self.scratch = torch.empty(size, dtype=torch.uint8, device=sizes.device)
        # Zeros, for rows that belong to nobody are never written, and must be finite.
        self.o = torch.zeros(rows, sizes.q_heads, sizes.head_dim, dtype=sizes.dtype, device=sizes.device)
        self.lse2 = torch.zeros(rows, sizes.q_heads, dtype=torch.float32, device=sizes.device)
        self._ring = [Staging(requests, page_entries, self.int_bytes, sizes.device) for _ in range(depth)]
        self._next = 0

    @property
    def device_bytes(self) -> int:
        """What it holds on the device."""
        return sum(x.numel() * x.element_size() for x in (self.scratch, self.o, self.lse2))

    def take(self) -> Staging:
        """Staging that no queued copy reads any more; waits for the device if there is none."""
        staging = self._ring[self._next]
        self._next = (self._next + 1) % len(self._ring)
        staging.copied.synchronize()
        return staging


class PagedAttention:
    """Attention of up to `rows` query rows of up to `requests` requests to keys and values in pages.

    A CUDA graph that captured `attend` serves every later plan: the library is told the largest number of
    rows first, and from then on its grids and offsets do not change. They do not depend on the keys, so pages
    need no buckets. Call `plan` on the stream that runs the graph: all its copies are ordered by that stream.
    """

    def __init__(
        self,
        sizes: AttentionSizes,
        workspace: Workspace,
        *,
        rows: int,
        requests: int,
        page_entries: int,
        causal: bool,
        algorithm: str,
    ) -> None:
        """Raises: ValueError for what FlashInfer or the workspace does not serve; ImportError without it."""
        sizes.check()
        if algorithm not in ALGORITHMS:
            raise ValueError(f"unknown attention algorithm {algorithm!r}: use {' or '.join(ALGORITHMS)}")
        self.rows, self.requests, self.page_entries = rows, requests, page_entries
        for name in ("rows", "requests", "page_entries"):
            if not 0 < getattr(self, name) <= getattr(workspace, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, the workspace has {getattr(workspace, name)}"
                )
        self._sizes, self._workspace, self._causal = sizes, workspace, causal
        self._pages = torch.zeros(page_entries, dtype=torch.int32, device=sizes.device)
        self._wrapper = self._make_wrapper(algorithm)
        self._planned_rows = 0
        self._layout: list[int] | None = None
        self.plan_maximum()

    def plan_maximum(self) -> None:
        """One request with all rows, over as many tokens or what the pages hold: before a capture.

        It reads page 0 only.
        """
        length = min(self.rows, self.page_entries * self._sizes.page_size)
        self.plan([0, self.rows], [np.zeros(self.page_entries, np.int32)], [length])

    def plan(self, row_offsets: Sequence[int], pages: Sequence[PageIds], lengths: Sequence[int]) -> None:
        """Rows [row_offsets[b], row_offsets[b+1]) read lengths[b] tokens of pages[b]; B <= requests.

        Rows behind row_offsets[-1] are padding: `attend` leaves theirs as they were. Earlier launches may
        still be queued. Raises: ValueError for what does not fit the sizes given at construction.
        """
        offsets, counts = np.asarray(row_offsets, np.int64), np.asarray(lengths, np.int64)
        self._check(offsets, pages, counts)
        staging = self._workspace.take()
        total = staging.fill(offsets, pages, counts, self._sizes.page_size)
        upload(self._pages[:total], staging.pages[:total])
        self._plan(staging, total, most_rows=int(np.diff(offsets).max(initial=0)))
        staging.copied.record()
        self._planned_rows = int(offsets[-1])

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """q [rows, Hq, D], its heads dense; k_pages, v_pages [P, page_size, Hkv, D] of one layer.

        Returns o [rows, Hq, D] contiguous, and lse2 [rows, Hq] float32 in base 2: memory of the workspace,
        which the next call writes. A request without keys has o = 0 and lse2 = -50,000, FlashInfer's minus
        infinity. Raises: ValueError for other shapes than planned, and for a capture of less than all rows.
        """
        if q.shape[0] != self.rows or scale != self._sizes.scale:
            raise ValueError(
                f"{q.shape[0]} rows at scale {scale}: planned for {self.rows} at {self._sizes.scale}"
            )
        count = self._planned_rows
        if count < self.rows and capturing(q.device):
            raise ValueError(f"{count} of {self.rows} rows are planned: call plan_maximum before a capture")
        o, lse2 = self._workspace.o[: self.rows], self._workspace.lse2[: self.rows]
        if count:
            self._wrapper.run(q[:count], (k_pages, v_pages), out=o[:count], lse=lse2[:count], return_lse=True)
        return o, lse2

    def _make_wrapper(self, algorithm: str) -> Any:
        """The library's object over buffers of fixed size, which a graph may bake in."""
        device = self._sizes.device

        def int32s(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, device=device)

        wrapper = library().BatchPrefillWithPagedKVCacheWrapper(
            self._workspace.scratch,
            "NHD",
            use_cuda_graph=True,
            qo_indptr_buf=int32s(self.requests + 1),
            paged_kv_indptr_buf=int32s(self.requests + 1),
            paged_kv_indices_buf=self._pages,
            paged_kv_last_page_len_buf=int32s(self.requests),
            backend=algorithm,
        )
        # Its own is 8 MiB for each bucket, on the device and pinned.
        plan = torch.empty(self._workspace.int_bytes, dtype=torch.uint8, device=device)
        wrapper.reset_workspace_buffer(self._workspace.scratch, plan)
        return wrapper

    def _plan(self, staging: Staging, total: int, most_rows: int) -> None:
        sizes, B = self._sizes, self.requests
        # The library writes its plan into pinned memory and returns with the copy to the device queued. Its
        # next plan would write the same memory, so each plan is given that of its own staging.
        self._wrapper._pin_memory_int_workspace_buffer = staging.plan
        self._wrapper.plan(
            staging.row_offsets[: B + 1],
            staging.page_offsets[: B + 1],
            self._pages[:total],  # in place already: page ids in host memory would be copied blocking
            staging.last_page[:B],
            sizes.q_heads,
            sizes.kv_heads,
            sizes.head_dim,
            sizes.page_size,
            causal=self._causal,
            sm_scale=sizes.scale,
            q_data_type=sizes.dtype,  # float16 if it were left out
            kv_data_type=sizes.dtype,
            non_blocking=True,
            seq_lens=staging.lengths[:B],  # what it would compute itself lies in memory that is not pinned
            max_token_per_sequence=most_rows,  # saves it a loop over tensors
        )
        # Splitting keys stays on: under graphs, 0.6.18 reads a mask that it does not set when it is off.
        layout = list(self._wrapper._plan_info)
        if self._layout not in (None, layout):
            raise RuntimeError(f"FlashInfer planned {layout} after {self._layout}: captured graphs are void")
        self._layout = layout

    def _check(
        self, offsets: NDArray[np.int64], pages: Sequence[PageIds], lengths: NDArray[np.int64]
    ) -> None:
        B, size = len(lengths), self._sizes.page_size
        if not len(offsets) - 1 == len(pages) == B <= self.requests:
            given = f"{len(offsets) - 1} row ranges, {len(pages)} page lists, {B} lengths"
            raise ValueError(f"{given}: as many of each, at most {self.requests}")
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] > self.rows:
            raise ValueError(f"row_offsets {offsets.tolist()} must ascend from 0 to at most {self.rows}")
        held = np.array([len(ids) for ids in pages], np.int64) * size
        if (lengths < 0).any() or (lengths > held).any():
            raise ValueError(f"lengths {lengths.tolist()} in pages that hold {held.tolist()} tokens")
        if (total := int((-(-lengths // size)).sum())) > self.page_entries:
            raise ValueError(f"{total} pages, planned for at most {self.page_entries}")


def library() -> ModuleType:
    """FlashInfer. Raises: ImportError that says what to install."""
    try:
        import flashinfer
    except ImportError as error:
        raise ImportError(
            f"attention on a GPU needs FlashInfer: pip install 'xgr-runtime[cuda]' ({error})"
        ) from error
    return flashinfer  # type: ignore[no-any-return]


def upload(target: Tensor, source: Tensor) -> None:
    """Queues a copy from pinned host memory; `source` must keep its values until it has happened."""
    target.copy_(source, non_blocking=True)


def new_event(device: torch.device) -> Event:
    """A mark in the stream that `record` sets and `synchronize` waits for; at once if it was never set."""
    return torch.cuda.Event() if device.type == "cuda" else _Passed()  # type: ignore[no-untyped-call]


def capturing(device: torch.device) -> bool:
    """Whether what is launched now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class _Passed:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _extend(target: Tensor, values: NDArray[np.int64], fill: int | None = None) -> None:
    """The values, and behind them `fill`, or their last one again."""
    out = target.numpy()
    out[: len(values)] = values
    out[len(values) :] = values[-1] if fill is None else fill
