"""Page allocator: who holds which pages of a bounded pool. Plain numbers, no tensors.

Both workers use it for prompt KV, and the decode worker for tail rows. A contiguous run is preferred,
because a run is read as a view instead of a gather.
"""

import numpy as np
from numpy.typing import NDArray

PageIds = NDArray[np.int32]
Generations = NDArray[np.uint32]


class PagePool:
    """`capacity` pages; every page is either free or held by exactly one owner.

    `generations` [capacity], which others may read, counts how often each page was given back: whoever finds
    a number unchanged after reading the page has read what was there when it took that number.
    """

    def __init__(self, capacity: int, generations: Generations | None = None) -> None:
        self.capacity = capacity
        self.generations = np.zeros(capacity, np.uint32) if generations is None else generations
        self._free = np.ones(capacity, dtype=bool)
        self._free_count = capacity

    @property
    def free(self) -> int:
        return self._free_count

    @property
    def used(self) -> int:
        return self.capacity - self._free_count

    def allocate(self, count: int, after: int | None = None) -> PageIds | None:
        """`count` page ids, ascending and contiguous where a run fits; None when too few are free.

        Right behind page `after`, whose prompt they go on with, if those are free.
        """
        if count > self._free_count:
            return None
        ids = self._run_behind(after, count) if after is not None else None
        if ids is None:
            ids = self._find_run(count)
        if ids is None:
            ids = np.flatnonzero(self._free)[:count].astype(np.int32)
        self._free[ids] = False
        self._free_count -= count
        return ids

    def release(self, ids: PageIds) -> None:
        """Give pages back; giving back a free page is our own bug."""
        assert not self._free[ids].any(), "page released twice"
        self.generations[ids] += np.uint32(1)  # wraps around
        self._free[ids] = True
        self._free_count += len(ids)

    def _run_behind(self, page: int, count: int) -> PageIds | None:
        behind = self._free[page + 1 : page + 1 + count]
        whole = len(behind) == count and bool(behind.all())
        return np.arange(page + 1, page + 1 + count, dtype=np.int32) if whole else None

    def _find_run(self, count: int) -> PageIds | None:
        """The smallest free run that holds `count` pages (best fit keeps long runs whole)."""
        edges = np.diff(np.concatenate(([0], self._free.view(np.int8), [0])))
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        lengths = ends - starts
        fits = np.flatnonzero(lengths >= count)
        if not len(fits):
            return None
        start = int(starts[fits[np.argmin(lengths[fits])]])
        return np.arange(start, start + count, dtype=np.int32)


def slots_of(pages: PageIds, start: int, count: int, page_size: int) -> NDArray[np.int64]:
    """Slots in a flat pool of tokens [start, start + count) of the prompt that `pages` hold."""
    token = np.arange(start, start + count)
    slots: NDArray[np.int64] = pages[token // page_size].astype(np.int64) * page_size + token % page_size
    return slots


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens` tokens."""
    return -(-tokens // page_size)
