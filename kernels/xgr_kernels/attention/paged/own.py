"""Paged attention without FlashInfer: planned and captured like it, run by a Triton kernel of ours.

It serves head sizes up to 128, and float32, whose products are sums of three in TF32: as good as float32's.
Keys are not split, so a lone request with few rows leaves most of a GPU idle: it is there so that such models
run.
"""

import math

import numpy as np
import torch
import triton
from torch import Tensor

from xgr_kernels.attention.paged import cuda_kernels as kernels
from xgr_kernels.attention.paged.cuda import PagedAttention
from xgr_kernels.attention.paged.rules import AttentionSizes, own_tiles
from xgr_kernels.attention.paged.workspace import Staging, upload

COLUMNS: int = kernels.COLUMNS.value


class OwnAttention(PagedAttention):
    """See `PagedAttention`, whose `algorithm` is then "own"."""

    def _prepare(self) -> None:
        tiles = own_tiles(self.sizes, self.rows, self.requests)
        self._tiles = torch.zeros(tiles, COLUMNS, dtype=torch.int32, device=self.sizes.device)

    def _plan(self, staging: Staging, total: int, most_rows: int) -> None:
        """Deals the rows of each request to tiles, and queues their copy to the device."""
        tiles = staging.plan[: 4 * self._tiles.numel()].view(torch.int32).view(self._tiles.shape)
        table, step, used = tiles.numpy(), self.sizes.own_rows // self.sizes.group, 0
        table[:] = 0
        offsets, lengths = staging.row_offsets.tolist(), staging.lengths.tolist()
        pages = staging.page_offsets.tolist()
        for b, length in enumerate(lengths):
            firsts = np.arange(offsets[b], offsets[b + 1], step)
            table[used : used + len(firsts), 0] = firsts
            table[used : used + len(firsts), 1:] = offsets[b + 1], length, pages[b]
            used += len(firsts)
        upload(self._tiles, tiles)

    def _run(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, o: Tensor, lse2: Tensor) -> None:
        s = self.sizes
        kernels.paged_attention_kernel[(len(self._tiles), s.kv_heads)](
            *(q, k_pages, v_pages, self._tiles, self._pages, o, lse2),
            s.scale / math.log(2),
            *(*q.stride()[:2], *k_pages.stride()[:3]),
            **launch_constants(s, self._causal),
        )


def launch_constants(sizes: AttentionSizes, causal: bool) -> dict[str, int | bool]:
    """What the kernel is compiled with."""
    return {
        "Hq": sizes.q_heads,
        "GROUP": sizes.group,
        "D": sizes.head_dim,
        "PAGE": sizes.page_size,
        "CAUSAL": causal,
        "BLOCK_M": sizes.own_rows,
        "BLOCK_N": sizes.own_rows,
        "BLOCK_D": max(16, triton.next_power_of_2(sizes.head_dim)),
    }
