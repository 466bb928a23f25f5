"""FlashInfer's paged attention: planned on the host once per launch, run once per layer, fit for CUDA graphs.

Shared attention is this with causal=False and beams as query rows; prefill is this with causal=True, where
the last rows of a request are its last tokens, so that a chunk behind a cached prefix is one call.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.attention.paged.rules import ALGORITHMS, OWN, AttentionSizes, choose_algorithm, device_facts
from xgr_kernels.attention.paged.workspace import PageIds, Staging, Workspace

__all__ = ["AttentionSizes", "PagedAttention", "Workspace", "quickest"]


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
        served = ALGORITHMS if sizes.by_flashinfer else (OWN,)
        if algorithm not in served:
            raise ValueError(
                f"no attention algorithm {algorithm!r} for these sizes: use {' or '.join(served)}"
            )
        self.rows, self.requests, self.page_entries = rows, requests, page_entries
        self.algorithm = algorithm
        for name in ("rows", "requests", "page_entries"):
            if not 0 < getattr(self, name) <= getattr(workspace, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, the workspace has {getattr(workspace, name)}"
                )
        self.sizes, self._workspace, self._causal = sizes, workspace, causal
        self._pages = torch.zeros(page_entries, dtype=torch.int32, device=sizes.device)
        self._prepare()
        self._planned_rows = 0
        self._layout: list[int] | None = None
        self.plan_maximum()

    def plan_maximum(self) -> None:
        """One request with all rows, over as many tokens or what the pages hold: before a capture.

        It reads page 0 only.
        """
        length = min(self.rows, self.page_entries * self.sizes.page_size)
        self.plan([0, self.rows], [np.zeros(self.page_entries, np.int32)], [length])

    def plan(self, row_offsets: Sequence[int], pages: Sequence[PageIds], lengths: Sequence[int]) -> None:
        """Rows [row_offsets[b], row_offsets[b+1]) read lengths[b] tokens of pages[b]; B <= requests.

        Rows behind row_offsets[-1] are padding: `attend` leaves theirs as they were. Earlier launches may
        still be queued. Raises: ValueError for what does not fit the sizes given at construction.
        """
        offsets, counts = np.asarray(row_offsets, np.int64), np.asarray(lengths, np.int64)
        self._check(offsets, pages, counts)
        staging = self._workspace.take()
        total = staging.fill(offsets, pages, counts, self.sizes.page_size)
        try:
            staging.upload_pages(self._pages[:total])
            self._plan(staging, total, most_rows=int(np.diff(offsets).max(initial=0)))
        finally:
            staging.copied.record()
        self._planned_rows = int(offsets[-1])

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """q [rows, Hq, D], its last dimension dense; k_pages, v_pages [P, page_size, Hkv, D] of one layer.

        Returns o [rows, Hq, D] contiguous, and lse2 [rows, Hq] float32 in base 2: memory of the workspace,
        which the next call writes. A request without keys has o = 0 and lse2 = -50,000, FlashInfer's minus
        infinity. Raises: ValueError for other shapes than planned, and for a capture of less than all rows.
        """
        self._check_tensors(q, k_pages, v_pages, scale)
        count = self._planned_rows
        if count < self.rows and capturing(q.device):
            raise ValueError(f"{count} of {self.rows} rows are planned: call plan_maximum before a capture")
        o, lse2 = self._workspace.o[: self.rows], self._workspace.lse2[: self.rows]
        if count:
            self._run(q[:count], k_pages, v_pages, o[:count], lse2[:count])
        return o, lse2

    def _run(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, o: Tensor, lse2: Tensor) -> None:
        self._wrapper.run(q, (k_pages, v_pages), out=o, lse=lse2, return_lse=True)

    def _prepare(self) -> None:
        """The library's object over buffers of fixed size, which a graph may bake in."""
        device = self.sizes.device

        def int32s(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, device=device)

        self._wrapper: Any = library().BatchPrefillWithPagedKVCacheWrapper(
            self._workspace.scratch,
            "NHD",
            use_cuda_graph=True,
            qo_indptr_buf=int32s(self.requests + 1),
            paged_kv_indptr_buf=int32s(self.requests + 1),
            paged_kv_indices_buf=self._pages,
            paged_kv_last_page_len_buf=int32s(self.requests),
            backend=self.algorithm,
        )
        # Its own is 8 MiB for each bucket, on the device and pinned.
        plan = torch.empty(self._workspace.int_bytes, dtype=torch.uint8, device=device)
        self._wrapper.reset_workspace_buffer(self._workspace.scratch, plan)

    def _plan(self, staging: Staging, total: int, most_rows: int) -> None:
        sizes, B = self.sizes, self.requests
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

    def _check_tensors(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, scale: float) -> None:
        """The library looks at little of this, and its kernels would read past the end."""
        s = self.sizes
        if q.shape[0] != self.rows or not math.isclose(scale, s.scale, rel_tol=1e-6):
            raise ValueError(f"{q.shape[0]} rows at scale {scale}: planned for {self.rows} at {s.scale}")
        if q.shape[1:] != (s.q_heads, s.head_dim) or q.dtype != s.dtype or q.stride(-1) != 1:
            raise ValueError(f"q {_describe(q)}: planned for rows of {(s.q_heads, s.head_dim)}, {s.dtype}")
        page = (s.page_size, s.kv_heads, s.head_dim)
        for x in (k_pages, v_pages):
            if x.shape[1:] != page or x.dtype != s.dtype or not x.is_contiguous():
                raise ValueError(f"pages {_describe(x)}: planned for dense ones of {page}, {s.dtype}")

    def _check(
        self, offsets: NDArray[np.int64], pages: Sequence[PageIds], lengths: NDArray[np.int64]
    ) -> None:
        B, size = len(lengths), self.sizes.page_size
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


def quickest(attentions: Sequence[PagedAttention], rows: Sequence[int], lengths: Sequence[int]) -> int:
    """Which of a bucket's attentions ends first for requests of so many rows and tokens, by the rule."""
    if len(attentions) == 1:
        return 0
    sizes = attentions[0].sizes
    cohort = list(zip(rows, lengths, strict=True))
    best = choose_algorithm(sizes, cohort, device_facts(sizes.device))
    return [attention.algorithm for attention in attentions].index(best)


def library() -> ModuleType:
    """FlashInfer. Raises: ImportError that says what to install."""
    try:
        import flashinfer
    except ImportError as error:
        raise ImportError(
            f"attention on a GPU needs FlashInfer: pip install 'xgr-runtime[cuda]' ({error})"
        ) from error
    return flashinfer  # type: ignore[no-any-return]


def capturing(device: torch.device) -> bool:
    """Whether what is launched now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype}, strides {x.stride()}"
