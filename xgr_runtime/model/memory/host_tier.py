"""KV of prompts that no longer fits a GPU's pool, in pinned main memory, until it is wanted or too old.

Copies in both directions go through the queue of the forwards: a page is saved before a later forward writes
to it. Not measured on a GPU. On a CPU it works alike, and gains only what a larger pool would.

The memory is several pieces. torch pins a block of the next power of two, so that one block of all could take
twice the bytes that were asked for; a block of a power of two takes what it says.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.model.base import DTYPES
from xgr_runtime.model.device.device import Device
from xgr_runtime.model.memory.kv_pool import KvPool


class HostTier:
    """A `Tier` of `kv.prompt_cache`: at most `size_bytes` of pages of `pool`, oldest dropped first.

    Raises `ConfigError` when there is less memory than that, and when that holds no page.
    """

    def __init__(self, pool: KvPool, size_bytes: int, device: Device) -> None:
        self._pool = pool
        self._device = device
        page_bytes = pool.page_size * pool.identity.token_bytes
        if not piece_sizes(size_bytes, page_bytes):
            least = 1 << (page_bytes - 1).bit_length()
            raise ConfigError(
                f"--host-cache-bytes {size_bytes} holds no page of KV: raise it to {least}, or 0"
            )
        try:
            self._pieces = [self._piece(size, page_bytes) for size in piece_sizes(size_bytes, page_bytes)]
        except RuntimeError as error:  # torch's for no memory, pinned or not
            reason = str(error).splitlines()[0]
            raise ConfigError(f"no {size_bytes} bytes of memory for --host-cache-bytes: {reason}") from None
        self._first = [0, *accumulate(map(len, self._pieces))]  # slot of each piece
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # oldest first
        self._free = list(range(self._first[-1]))

    def _piece(self, size_bytes: int, page_bytes: int) -> Tensor:
        """Slots in one block of memory, [slots, 2, layers, page_size, Hkv, D]: keys, then values."""
        identity, dtype = self._pool.identity, DTYPES[self._pool.identity.dtype]
        block = self._device.staging(size_bytes // dtype.itemsize, dtype=dtype)
        slots = size_bytes // page_bytes
        shape = (slots, 2, identity.layers, self._pool.page_size, identity.kv_heads, identity.head_dim)
        return block[: slots * page_bytes // dtype.itemsize].view(shape)

    def _kept(self, slot: int) -> Tensor:
        """[2, layers, page_size, Hkv, D]"""
        piece = bisect_right(self._first, slot) - 1
        return self._pieces[piece][slot - self._first[piece]]

    def __contains__(self, name: bytes) -> bool:
        """See `Tier`."""
        return name in self._slots

    def save(self, name: bytes, page: int) -> None:
        """See `Tier`. What came from here is here still."""
        if name in self._slots:
            self._slots.move_to_end(name)
            return
        if not self._free and not self._slots:
            return
        slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
        self._slots[name] = slot
        with self._device.running(), torch.inference_mode():
            for kept, ours in zip(self._kept(slot), (self._pool.k, self._pool.v), strict=True):
                kept.copy_(ours[:, page], non_blocking=True)

    def load(self, names: Sequence[bytes], pages: PageIds) -> None:
        """See `Tier`. It waits for the copies: readers in other processes may be told at once."""
        done = self._device.event()
        with self._device.running(), torch.inference_mode():
            for name, page in zip(names, pages.tolist(), strict=True):
                page_kept = self._kept(self._slots[name])
                for kept, ours in zip(page_kept, (self._pool.k, self._pool.v), strict=True):
                    ours[:, page].copy_(kept, non_blocking=True)
            done.record()
        done.wait()
        for name in reversed(names):  # the end of a prompt is older than its beginning, as in the cache
            self._slots.move_to_end(name)

    def clear(self) -> None:
        """See `Tier`."""
        self._free += self._slots.values()
        self._slots.clear()


def piece_sizes(size_bytes: int, page_bytes: int) -> list[int]:
    """Powers of two, the largest first, that together are at most `size_bytes` and hold a page each."""
    powers = [1 << bit for bit in reversed(range(size_bytes.bit_length())) if size_bytes >> bit & 1]
    return [size for size in powers if size >= page_bytes]
