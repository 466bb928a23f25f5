"""SGLang's KV pool as this process's memory, and one prompt's part of it as bytes for the wire."""

import ctypes
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from xgr_runtime.handover.protocol import Chunk, PromptPages
from xgr_runtime.handover.transfer import KvSource
from xgr_runtime.kv.pages import PageIds, slots_of


class SglangKv:
    """The pool that SGLang's `KVArgs` describe: one buffer per layer for keys, then one per layer for values.

    Each is [slots, token bytes]. Token t of a prompt lies in slot t % page_size of its page t // page_size.
    """

    def __init__(self, args: Any, kind: str) -> None:
        """`kind` is "cpu" or "cuda"; which GPU it is, `args` say."""
        device = torch.device(kind, args.gpu_id) if kind == "cuda" else torch.device(kind)
        self.layers: int = len(args.kv_data_ptrs) // 2
        self.page_size: int = args.page_size
        token_bytes = {length // args.page_size for length in args.kv_item_lens}
        if len(token_bytes) != 1 or len(args.kv_data_ptrs) % 2:
            raise ValueError("keys and values of all layers must have one size")
        self.token_bytes: int = token_bytes.pop()  # keys of one token in one layer; values have as many
        buffers = [
            _memory(pointer, length, device).view(-1, self.token_bytes)
            for pointer, length in zip(args.kv_data_ptrs, args.kv_data_lens, strict=True)
        ]
        self.slots: int = len(buffers[0])
        self._keys, self._values = buffers[: self.layers], buffers[self.layers :]

    def read(self, layer: int, pages: PageIds, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens [start, start + count), copied to the host: [count, token bytes] each."""
        where = torch.from_numpy(slots_of(pages, start, count, self.page_size))
        return tuple(  # type: ignore[return-value]
            x[layer].index_select(0, where.to(x[layer].device)).cpu() for x in (self._keys, self._values)
        )


class PromptKv(KvSource, Protocol):
    """The KV of one prompt, as far as SGLang has computed it. Chunks of one layer are read, all KV heads."""

    def extend(self, pages: PageIds, start: int, count: int) -> None:
        """Tokens [start, start + count) are now in the prompt's `pages`."""
        ...


class PagedPromptKv:
    """Read from the pool when a chunk may leave; the pages stay the prompt's until then."""

    shared: PromptPages | None = None

    def __init__(self, kv: SglangKv) -> None:
        self._kv = kv
        self._pages: PageIds = np.empty(0, np.int32)

    def extend(self, pages: PageIds, start: int, count: int) -> None:
        """See `PromptKv.extend`."""
        self._pages = pages

    def read(self, chunk: Chunk) -> tuple[memoryview, memoryview]:
        """See `KvSource.read`."""
        keys, values = self._kv.read(chunk.first_layer, self._pages, chunk.start, chunk.count)
        return keys.flatten().numpy().data, values.flatten().numpy().data


class GatheredPromptKv:
    """Under tensor parallelism each rank holds some of the KV heads: the first rank collects them all.

    Every rank must call `extend` for the same prompts in the same order, as SGLang's schedulers do; only the
    first rank's can be read.
    """

    shared: PromptPages | None = None

    def __init__(self, kv: SglangKv, tokens: int, group: dist.ProcessGroup) -> None:
        self._kv = kv
        self._group = group
        self._ranks = dist.get_world_size(group)
        shape = (2, kv.layers, tokens, self._ranks, kv.token_bytes)
        self._all = torch.empty(shape, dtype=torch.uint8) if dist.get_rank(group) == 0 else None

    def extend(self, pages: PageIds, start: int, count: int) -> None:
        """See `PromptKv.extend`."""
        layers = [self._kv.read(layer, pages, start, count) for layer in range(self._kv.layers)]
        ours = torch.stack([torch.stack(x) for x in zip(*layers, strict=True)])  # [2, layers, count, bytes]
        parts = [torch.empty_like(ours) for _ in range(self._ranks)] if self._all is not None else None
        dist.gather(ours, parts, group=self._group, group_dst=0)
        if self._all is not None and parts is not None:
            self._all[:, :, start : start + count] = torch.stack(parts, dim=3)

    def read(self, chunk: Chunk) -> tuple[memoryview, memoryview]:
        """See `KvSource.read`."""
        assert self._all is not None, "the first rank sends"
        part = self._all[:, chunk.first_layer, chunk.start : chunk.start + chunk.count]
        return part[0].flatten().numpy().data, part[1].flatten().numpy().data


def _memory(pointer: int, length: int, device: torch.device) -> Tensor:
    """`length` bytes at an address, not copied: torch would copy what lies on another GPU than `device`."""
    if device.type == "cpu":
        return torch.frombuffer((ctypes.c_uint8 * length).from_address(pointer), dtype=torch.uint8)
    return torch.as_tensor(_CudaMemory(pointer, length), device=device)


class _CudaMemory:
    """Device memory in the form that torch takes without a copy."""

    def __init__(self, pointer: int, length: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (length,),
            "typestr": "|u1",
            "data": (pointer, False),
            "version": 3,
        }
