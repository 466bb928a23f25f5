"""A stand-in for the part of FlashInfer that `xgr_kernels.attention.paged` uses, for machines without a GPU.

It keeps the library's contract where a mistake would show on a GPU alone: kernels read the buffers given at
construction and the plan's bytes on the device, never the arguments of `plan`; copies from the host and
launches wait in a stream, and read host memory when they run; dtypes, devices and shapes must be the promised
ones. `test_paged.py` compares its signatures with the library's source where that is installed.

    stream = install(monkeypatch)      # `import flashinfer` now gives this
    with stream.held(): ...            # what is launched inside runs when the block ends
"""

from __future__ import annotations

import importlib.machinery
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from torch import Tensor

from xgr_kernels.attention.paged import workspace as paged_workspace
from xgr_kernels.attention.paged.rules import AttentionSizes, device_facts, fa3_tile, float_bytes, int_bytes

MINUS_INFINITY = -5e4  # the library's, in log-sum-exps of rows without keys


class Stream:
    """Work in order: at once, or later while it is held."""

    def __init__(self) -> None:
        self._held = False
        self._queue: list[Callable[[], None]] = []
        self._done = 0  # pieces of work since the beginning
        self.inside = False  # of a piece of work, and what it launches is part of it

    def launch(self, work: Callable[[], None]) -> None:
        """Run `work` when its turn comes."""
        if self.inside:
            work()
            return
        self._queue.append(work)
        if not self._held:
            self.run(self.launched)

    @property
    def done(self) -> int:
        """How much of it has run."""
        return self._done

    @property
    def launched(self) -> int:
        """How much was ever launched; `run(launched)` leaves nothing."""
        return self._done + len(self._queue)

    def run(self, until: int) -> None:
        """Do the first `until` pieces of work."""
        while self._done < until:
            self._done += 1
            work, self.inside = self._queue.pop(0), True
            try:
                work()
            finally:
                self.inside = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """A device that is busy with something else."""
        self._held = True
        yield
        self._held = False
        self.run(self.launched)


class StreamEvent:
    """A mark in a stream; waiting for it lets the stream run up to it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._mark = 0

    def record(self) -> None:
        self._mark = self._stream.launched

    def synchronize(self) -> None:
        self._stream.run(self._mark)


def install(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Puts the stand-in in the library's place, and copies and events of workspaces in its stream's order."""
    stream = Stream()
    module = ModuleType("flashinfer")
    module.__spec__ = importlib.machinery.ModuleSpec("flashinfer", None)
    wrapper = type("Wrapper", (BatchPrefillWithPagedKVCacheWrapper,), {"stream": stream})
    module.BatchPrefillWithPagedKVCacheWrapper = wrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(paged_workspace, "upload", lambda to, of: stream.launch(lambda: copy(to, of)))
    monkeypatch.setattr(paged_workspace, "new_event", lambda device: StreamEvent(stream))
    return stream


class BatchPrefillWithPagedKVCacheWrapper:
    """The library's class of this name, in graph mode, in float64."""

    stream: Stream

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: Tensor | None = None,
        paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None,
        paged_kv_last_page_len_buf: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        assert use_cuda_graph and kv_layout == "NHD" and backend in ("fa2", "fa3")
        assert qo_indptr_buf is not None and paged_kv_indptr_buf is not None
        assert paged_kv_indices_buf is not None and paged_kv_last_page_len_buf is not None
        self.device = float_workspace_buffer.device
        self._fixed_batch_size = len(qo_indptr_buf) - 1
        if len(paged_kv_indptr_buf) != self._fixed_batch_size + 1:
            raise ValueError("The length of paged_kv_indptr_buf should be batch_size + 1.")
        if len(paged_kv_last_page_len_buf) != self._fixed_batch_size:
            raise ValueError("The length of paged_kv_last_page_len_buf should be batch_size.")
        self._qo_indptr_buf = _expect(qo_indptr_buf, torch.int32, self.device)
        self._paged_kv_indptr_buf = _expect(paged_kv_indptr_buf, torch.int32, self.device)
        self._paged_kv_indices_buf = _expect(paged_kv_indices_buf, torch.int32, self.device)
        self._paged_kv_last_page_len_buf = _expect(paged_kv_last_page_len_buf, torch.int32, self.device)
        self._backend = backend
        self._max_total_num_rows: int | None = None
        self.reset_workspace_buffer(
            float_workspace_buffer, torch.empty(8 << 20, dtype=torch.uint8, device=self.device)
        )

    def reset_workspace_buffer(self, float_workspace_buffer: Tensor, int_workspace_buffer: Tensor) -> None:
        """Other memory for partial results and plans; also new pinned memory of the plan's size."""
        self._float_workspace_buffer = _expect(float_workspace_buffer, torch.uint8, self.device)
        self._int_workspace_buffer = _expect(int_workspace_buffer, torch.uint8, self.device)
        self._pin_memory_int_workspace_buffer = torch.empty(int_workspace_buffer.shape, dtype=torch.uint8)

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        causal: bool = False,
        sm_scale: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
        non_blocking: bool = True,
        seq_lens: Tensor | None = None,
        max_token_per_sequence: int | None = None,
    ) -> None:
        """Queues copies of its arguments to the buffers, and of the plan's bytes out of pinned memory."""
        host = torch.device("cpu")
        for given, length in ((qo_indptr, 1), (paged_kv_indptr, 1), (paged_kv_last_page_len, 0)):
            assert len(_expect(given, torch.int32, host)) == self._fixed_batch_size + length
        assert seq_lens is not None and len(_expect(seq_lens, torch.int32, host)) == self._fixed_batch_size
        # Of the library's two ways, the one that does not wait for the stream.
        assert _expect(paged_kv_indices, torch.int32, self.device).data_ptr() in (
            0,
            self._paged_kv_indices_buf.data_ptr(),
        )
        assert len(paged_kv_indices) == int(paged_kv_indptr[-1]) <= len(self._paged_kv_indices_buf)
        rows = int(qo_indptr[-1])
        self._max_total_num_rows = self._max_total_num_rows or rows
        if rows > self._max_total_num_rows:
            raise ValueError("The total number of rows cannot exceed that set during initialization.")
        assert max_token_per_sequence == int(qo_indptr.diff().max())
        full = paged_kv_indptr.diff() - 1
        assert torch.equal(seq_lens, full.clamp(min=0) * page_size + paged_kv_last_page_len)
        self._sizes = AttentionSizes(
            num_qo_heads,
            num_kv_heads,
            head_dim_qk,
            page_size,
            q_data_type,
            self.device,
            sm_scale if sm_scale is not None else head_dim_qk**-0.5,
        )
        assert kv_data_type in (None, q_data_type)
        self._causal, self._rows = causal, rows
        self._plan_info = self._lay_out()
        self._copy(self._qo_indptr_buf, qo_indptr)
        self._copy(self._paged_kv_indptr_buf, paged_kv_indptr)
        self._copy(self._paged_kv_last_page_len_buf, paged_kv_last_page_len)
        self._write_plan(torch.cat([qo_indptr, seq_lens]))

    def run(
        self,
        q: Tensor,
        paged_kv_cache: tuple[Tensor, Tensor],
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Queues attention by what the buffers will hold then."""
        s = self._sizes
        assert out is not None and lse is not None and return_lse
        if q.shape[0] != self._rows:
            raise ValueError(f"q.shape[0] ({q.shape[0]}) does not match qo_indptr[-1] ({self._rows}).")
        assert q.dtype == s.dtype and q.shape[1:] == (s.q_heads, s.head_dim) and q.stride(-1) == 1
        assert _expect(out, s.dtype, self.device).shape == q.shape
        assert _expect(lse, torch.float32, self.device).shape == q.shape[:2]
        for pages in paged_kv_cache:
            assert pages.dtype == s.dtype and pages.shape[1:] == (s.page_size, s.kv_heads, s.head_dim)
        assert paged_kv_cache[0].stride() == paged_kv_cache[1].stride()  # FA3 wants that
        self.stream.launch(lambda: self._attend(q, *paged_kv_cache, out, lse))
        return out, lse

    def _lay_out(self) -> list[int]:
        """Grids and offsets as the library fixes them; memory that is too small raises there too."""
        rows, B = self._max_total_num_rows or 0, self._fixed_batch_size
        multiprocessors, _ = device_facts(self.device)
        if self._backend == "fa3":
            return [rows, B, -(-rows // fa3_tile(self._sizes.head_dim)) + B - 1]
        for size, buffer in (
            (float_bytes(self._sizes, rows, B, multiprocessors), self._float_workspace_buffer),
            (int_bytes(self._sizes, rows, B, multiprocessors), self._int_workspace_buffer),
        ):
            if size > buffer.numel():
                raise RuntimeError(f"Buffer overflow: {size} bytes, {buffer.numel()} are there")
        return [rows, B]

    def _write_plan(self, values: Tensor) -> None:
        pinned, plan = self._pin_memory_int_workspace_buffer, self._int_workspace_buffer
        assert pinned.numel() >= plan.numel(), "the library copies so much without looking"
        pinned[: values.numel() * 4].view(torch.int32).copy_(values)
        self._copy(plan[: values.numel() * 4], pinned[: values.numel() * 4])

    def _copy(self, target: Tensor, source: Tensor) -> None:
        self.stream.launch(lambda: copy(target, source))

    def _attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, out: Tensor, lse: Tensor) -> None:
        B, s = self._fixed_batch_size, self._sizes
        offsets = self._qo_indptr_buf.tolist()
        ends = self._paged_kv_indptr_buf.tolist()
        plan = self._int_workspace_buffer[: (2 * B + 1) * 4].view(torch.int32).tolist()
        assert plan[: B + 1] == offsets, "buffers and plan are of different launches"
        for b in range(B):
            rows = slice(offsets[b], offsets[b + 1])
            ids = self._paged_kv_indices_buf[ends[b] : ends[b + 1]].long()
            length = max(len(ids) - 1, 0) * s.page_size + int(self._paged_kv_last_page_len_buf[b])
            assert plan[B + 1 + b] == length, "buffers and plan are of different launches"
            keys, values = (x[ids].flatten(0, 1)[:length] for x in (k_pages, v_pages))  # [L, Hkv, D]
            o, lse2 = attend(q[rows], keys, values, s.scale, self._causal)
            out[rows], lse[rows] = o.to(out.dtype), lse2.float()


def copy(target: Tensor, source: Tensor) -> None:
    """What the source holds now, whatever it held when this was queued."""
    target.copy_(source)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """q [W, Hq, D], k, v [L, Hkv, D] -> o [W, Hq, D], lse2 [W, Hq], float64; right-aligned if causal."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("whd,lhd->whl", q.double(), k) * scale
    if causal:
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        scores.masked_fill_(~seen.unsqueeze(1), -math.inf)
    lse2 = scores.logsumexp(-1) / math.log(2)
    weights = scores.softmax(-1).nan_to_num(0.0)  # rows that see nothing
    return torch.einsum("whl,lhd->whd", weights, v), lse2.clamp(min=MINUS_INFINITY)


def _expect(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor, if it is contiguous, of this dtype and on this device."""
    if tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous():
        raise ValueError(f"{tensor.dtype} on {tensor.device}, expected dense {dtype} on {device}")
    return tensor
