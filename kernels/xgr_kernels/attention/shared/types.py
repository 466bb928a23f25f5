"""What shared attention is told about a step."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedPlan:
    """Which rows read which pages: host data, made once per step and used by every layer."""

    row_offsets: list[int]  # [B+1], rows of request b are [row_offsets[b], row_offsets[b+1])
    pages: list[np.ndarray]  # B arrays of page ids, int32
    lengths: list[int]  # [B] prompt tokens, at most len(pages[b]) * page_size
    page_size: int

    @cached_property
    def first_pages(self) -> list[int | None]:
        """[B] first page of a request that is read as a view, as its pages follow one another; else None."""
        counts = [-(-length // self.page_size) for length in self.lengths]
        return [_first_of_run(pages[:count]) for pages, count in zip(self.pages, counts, strict=True)]

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
