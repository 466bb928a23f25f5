"""Shared attention: what it takes, what it gives, and which backend runs it.

Every beam of a request reads the same prompt KV, so the beams are the rows of one non-causal product.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.shared_attention import cpu, reference


@dataclass(frozen=True)
class SharedPlan:
    """Which rows read which pages: host data, made once per step and used by every layer."""

    row_offsets: list[int]  # [B+1], rows of request b are [row_offsets[b], row_offsets[b+1])
    pages: list[np.ndarray]  # B arrays of page ids, int32
    lengths: list[int]  # [B] prompt tokens, at most len(pages[b]) * page_size
    page_size: int

    @cached_property
    def first_pages(self) -> list[int | None]:
        """[B] first page of a request whose pages follow one another (read as a view), else None."""
        return [_first_of_run(pages) for pages in self.pages]

    @cached_property
    def page_tensors(self) -> list[Tensor]:
        """[B] page ids as int64 tensors, for the requests that must be gathered."""
        return [torch.from_numpy(np.asarray(pages, dtype=np.int64)) for pages in self.pages]

    def read(self, pool: Tensor, request: int) -> Tensor:
        """The KV of one request, [L, Hkv, D], from `pool` [P, page_size, Hkv, D]."""
        length = self.lengths[request]
        count = -(-length // self.page_size)
        first = self.first_pages[request]
        if first is not None:
            run = pool[first : first + count]
        else:
            run = pool.index_select(0, self.page_tensors[request][:count])
        return run.flatten(0, 1)[:length]


def _first_of_run(pages: np.ndarray) -> int | None:
    if len(pages) == 0 or not bool((np.diff(pages) == 1).all()):
        return None
    return int(pages[0])


def shared_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, plan: SharedPlan, scale: float, backend: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Non-causal attention of each request's rows over its prompt.

    q [R, Hq, D]; k_pages, v_pages [P, page_size, Hkv, D] of one layer, Hq a multiple of Hkv.
    Returns o [R, Hq, D] in q's dtype and lse2 [R, Hq], the log-sum-exp in base 2 (float32; float64 from the
    reference for float64 input). A prompt of length 0 gives o = 0 and lse2 = -inf.
    Raises: ValueError for an unknown backend.
    """
    if backend == "cpu":
        return cpu.attend(q, k_pages, v_pages, plan, scale)
    if backend == "reference":
        return reference.attend(q, k_pages, v_pages, plan, scale)
    raise ValueError(f"unknown shared_attention backend {backend!r}: use cpu or reference")
