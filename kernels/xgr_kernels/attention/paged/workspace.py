"""Memory of FlashInfer's plans and partial results, shared by all buckets of one stream.

A plan's host memory is read by copies that are still queued when `plan` has returned: it comes from a ring.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.attention.paged.rules import AttentionSizes, device_facts, float_bytes, int_bytes

PageIds = NDArray[np.int32]


class CopyEvent(Protocol):
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

    def upload_pages(self, target: Tensor) -> None:
        """Queues a copy of as many page ids as `target` holds, in device memory."""
        upload(target, self.pages[: len(target)])


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


def upload(target: Tensor, source: Tensor) -> None:
    """Queues a copy from pinned host memory; `source` must keep its values until it has happened."""
    target.copy_(source, non_blocking=True)


def new_event(device: torch.device) -> CopyEvent:
    """A mark in the stream that `record` sets and `synchronize` waits for; at once if it was never set."""
    return torch.cuda.Event() if device.type == "cuda" else _NoCopy()  # type: ignore[no-untyped-call]


class _NoCopy:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _extend(target: Tensor, values: NDArray[np.int64], fill: int | None = None) -> None:
    """The values, and behind them `fill`, or their last one again."""
    out = target.numpy()
    out[: len(values)] = values
    out[len(values) :] = values[-1] if fill is None else fill
