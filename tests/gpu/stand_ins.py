"""FlashInfer for machines without a GPU: the tests' stand-in, and the rivals' wrappers on top of it."""

from __future__ import annotations

import math
import sys
from typing import Any

import flashinfer_stand_in
import pytest
import torch
from torch import Tensor


def install() -> None:
    """`import flashinfer` gives the stand-ins from here on, to the end of the process."""
    flashinfer_stand_in.install(pytest.MonkeyPatch())
    module: Any = sys.modules["flashinfer"]
    module.BatchDecodeWithPagedKVCacheWrapper = Decode
    module.MultiLevelCascadeAttentionWrapper = Cascade
    module.__version__ = "stand-in"


class Decode:
    """The library's per-sequence decode, as its rival calls it."""

    def __init__(self, workspace: Tensor, kv_layout: str, use_tensor_cores: bool) -> None:
        assert kv_layout == "NHD" and workspace.dtype == torch.uint8

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        sm_scale: float,
    ) -> None:
        assert indptr.dtype == indices.dtype == last_page_len.dtype == torch.int32
        self._plan = indptr.tolist(), indices.long(), last_page_len.tolist(), page_size, sm_scale

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        return _attend(q, range(len(q) + 1), paged_kv_cache, *self._plan)[0]


class Cascade:
    """The library's cascade of levels."""

    def __init__(self, num_levels: int, workspace: Tensor, kv_layout: str) -> None:
        assert num_levels == 2 and kv_layout == "NHD" and workspace.dtype == torch.uint8

    def plan(
        self,
        qo_indptr_arr: list[Tensor],
        paged_kv_indptr_arr: list[Tensor],
        paged_kv_indices_arr: list[Tensor],
        paged_kv_last_page_len: list[Tensor],
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        sm_scale: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        levels = zip(
            qo_indptr_arr, paged_kv_indptr_arr, paged_kv_indices_arr, paged_kv_last_page_len, strict=True
        )
        self._levels = [
            (rows.tolist(), indptr.tolist(), indices.long(), last.tolist(), page_size, sm_scale)
            for rows, indptr, indices, last in levels
        ]

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        parts = [_attend(q, level[0], paged_kv_cache, *level[1:]) for level in self._levels]
        weights = torch.stack([lse2 for _, lse2 in parts]).mul(math.log(2)).softmax(0)
        o = torch.stack([o for o, _ in parts]).double()
        return (weights[..., None] * o).sum(0).to(q.dtype)


def _attend(
    q: Tensor,
    rows: Any,
    paged_kv_cache: tuple[Tensor, Tensor],
    indptr: list[int],
    indices: Tensor,
    last: list[int],
    page_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Sequence by sequence: o in q's dtype, lse2 in float64."""
    o, lse2 = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float64)
    for b in range(len(last)):
        ids = indices[indptr[b] : indptr[b + 1]]
        length = (len(ids) - 1) * page_size + last[b]
        k, v = (x[ids].flatten(0, 1)[:length] for x in paged_kv_cache)
        mine = slice(rows[b], rows[b + 1])
        found, lse2[mine] = flashinfer_stand_in.attend(q[mine], k, v, scale, causal=False)
        o[mine] = found.to(q.dtype)
    return o, lse2
