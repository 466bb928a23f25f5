"""SGLang's KV pool as this process's memory: bytes of any tokens of any layer, gathered for the wire."""

import ctypes
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SglangKv:
    """The pool that SGLang's `KVArgs` describe: one buffer per layer for keys, then one per layer for values.

    Each is [slots, token bytes]. Token t of a prompt lies in slot t % page_size of its page t // page_size.
    """

    def __init__(self, args: Any, device: str) -> None:
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
        self._keys, self._values = buffers[: self.layers], buffers[self.layers :]

    def read(
        self, layer: int, pages: NDArray[np.int32], start: int, count: int
    ) -> tuple[memoryview, memoryview]:
        """Keys and values of tokens [start, start + count), copied: [count, token bytes] each."""
        token = np.arange(start, start + count)
        slots = pages[token // self.page_size].astype(np.int64) * self.page_size + token % self.page_size
        where = torch.from_numpy(slots)
        return _gather(self._keys[layer], where), _gather(self._values[layer], where)


def _gather(buffer: Tensor, slots: Tensor) -> memoryview:
    rows = buffer.index_select(0, slots.to(buffer.device)).cpu()
    return rows.flatten().numpy().data


def _memory(pointer: int, length: int, device: str) -> Tensor:
    """`length` bytes at an address, not copied."""
    if device == "cpu":
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
