"""Runs interpreted Triton kernels as a GPU may run them, and raises for what would go wrong there alone.

    poison(seed, *scratch)
    with watched(seed, *memory) as launched:
        my_kernel[grid](p_x, p_out, ...)

Programs run in random order. Every address that a lane is not masked from has to be an element of a tensor
that the launch was given, or of `memory`, which kernels reach through addresses that they read. What one
program of a launch writes no other one may read or write: nobody promises an order. Atomics may meet atomics.
Lanes of one store may not write different values to one place, and what is loaded behind a mask without an
`other` is garbage.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

Ints: TypeAlias = NDArray[np.int64]

NOBODY, SEVERAL = -1, -2  # in place of a program
CLASHES = {"read": ("write", "atomic"), "write": ("read", "write", "atomic"), "atomic": ("read", "write")}
POISON = (0xFF, 0x7F)  # bytes: NaN and -1; 3e38 and 2139062143


class Fault(AssertionError):
    """What a launch must not do: which kernel and program, to which address."""


def poison(seed: int, *tensors: Tensor) -> None:
    """Fills dense scratch memory with what no kernel may build on."""
    for tensor in tensors:
        tensor.view(torch.uint8).fill_(POISON[seed % 2])


@contextmanager
def watched(seed: int, *memory: Tensor) -> Iterator[list[str]]:
    """Watches the launches inside; gives the names of the kernels that ran. They raise `Fault`."""
    watch = _Watch(seed, {f"memory[{i}]": x for i, x in enumerate(memory)})
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "__call__", watch.launch(executor.__call__))
        patch.setattr(builder, "set_grid_dim", watch.grid(builder.set_grid_dim))
        patch.setattr(builder, "set_grid_idx", watch.next_program(builder.set_grid_idx))
        patch.setattr(builder, "create_masked_load", watch.load(builder.create_masked_load))
        patch.setattr(builder, "create_masked_store", watch.store(builder.create_masked_store))
        patch.setattr(builder, "create_atomic_rmw", watch.atomic_rmw(builder.create_atomic_rmw))
        patch.setattr(builder, "create_atomic_cas", watch.atomic_cas(builder.create_atomic_cas))
        yield watch.launched


class Memory:
    """What a launch may touch, byte by byte, and which of its programs has."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self._named = {name: x for name, x in named.items() if x.numel()}
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in self._named.values()}
        self._starts = np.array(sorted(storages), np.int64)
        self._sizes = np.array([storages[start].nbytes() for start in self._starts.tolist()], np.int64)
        self._places = np.cumsum(self._sizes) - self._sizes  # of their first bytes in the arrays below
        total = int(self._sizes.sum())
        self._elements = np.zeros(total, bool)
        self._touched = {kind: np.full(total, NOBODY, np.int32) for kind in CLASHES}
        for x in self._named.values():
            self._mark(x)

    def touch(self, kind: str, addresses: Ints, width: int, program: int) -> None:
        """One program's `kind` of access to `width` bytes from each address. Raises: Fault."""
        places = self._locate(addresses, width)
        for other in CLASHES[kind]:
            who = self._touched[other][places]
            foreign = (who != NOBODY) & (who != program)
            if foreign.any():
                at = int(foreign.any(1).argmax())
                raise Fault(
                    f"{kind} of {self._describe(addresses[at])}: {other} by {_program(who[at].max())}"
                )
        mine = self._touched[kind]
        before = mine[places]
        mine[places] = np.where((before == NOBODY) | (before == program), program, SEVERAL)

    def _locate(self, addresses: Ints, width: int) -> Ints:
        """Where the bytes [N, width] are in our arrays. Raises: Fault for one that is no tensor's."""
        region = np.searchsorted(self._starts, addresses, side="right") - 1
        offset = addresses - self._starts[region]
        good = (region >= 0) & (offset + width <= self._sizes[region]) & (addresses % width == 0)
        places = np.where(good, self._places[region] + offset, 0)[:, None] + np.arange(width)
        good &= self._elements[np.minimum(places, len(self._elements) - 1)].all(1)
        if not good.all():
            raise Fault(
                f"access to {self._describe(int(addresses[good.argmin()]))}, which is no element of it"
            )
        return places

    def _mark(self, x: Tensor) -> None:
        """The bytes of its elements are fair."""
        size, start = x.element_size(), x.untyped_storage().data_ptr()
        place = self._places[np.searchsorted(self._starts, start)] + x.storage_offset() * size
        strides = (*(stride * size for stride in x.stride()), 1)
        view = np.lib.stride_tricks.as_strided(self._elements[place:], (*x.shape, size), strides)
        view[...] = True

    def _describe(self, address: int) -> str:
        """The tensor that begins next before it, if any does, and how many bytes before."""
        starts = {name: int(address) - x.data_ptr() for name, x in self._named.items()}
        name = min(starts, key=lambda name: (starts[name] < 0, abs(starts[name])))
        return f"{name} byte {starts[name]} of {tuple(self._named[name].shape)} {self._named[name].dtype}"


class _Watch:
    """Wraps what the interpreter calls. Each method takes the original and gives what replaces it."""

    def __init__(self, seed: int, memory: dict[str, Tensor]) -> None:
        self._random = np.random.default_rng(seed)
        self._given = memory
        self._memory = Memory({})
        self._fault: Fault | None = None
        self._order: Iterator[int] = iter(())
        self._dim: tuple[int, ...] = ()
        self._program = 0
        self.launched: list[str] = []

    def launch(self, original: Callable[..., None]) -> Callable[..., None]:
        def call(executor: Any, *args: Any, **kwargs: Any) -> None:
            names = inspect.getfullargspec(executor.fn).args
            given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
            tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
            self._memory, self._fault = Memory(self._given | tensors), None
            try:
                original(executor, *args, **kwargs)
            except InterpreterError:
                if self._fault is None:
                    raise
                where = tuple(map(int, np.unravel_index(self._program, self._dim)))
                raise Fault(f"{executor.fn.__name__}, program {where}: {self._fault}") from None
            self.launched.append(executor.fn.__name__)

        return call

    def grid(self, original: Callable[..., None]) -> Callable[..., None]:
        def set_grid_dim(builder: Any, *dim: int) -> None:
            self._dim = dim
            self._order = iter(self._random.permutation(int(np.prod(dim))).tolist())
            original(builder, *dim)

        return set_grid_dim

    def next_program(self, original: Callable[..., None]) -> Callable[..., None]:
        def set_grid_idx(builder: Any, *_: int) -> None:
            self._program = next(self._order)
            original(builder, *map(int, np.unravel_index(self._program, self._dim)))

        return set_grid_idx

    def load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def create_masked_load(builder: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
            self._touch("read", ptrs, mask.data)
            if other is None:
                kind = interpreter._get_np_dtype(ptrs.get_element_ty())
                garbage = np.full((*ptrs.data.shape, kind.itemsize), POISON[0], np.uint8).view(kind)[..., 0]
                other = interpreter.TensorHandle(garbage, ptrs.get_element_ty())
            return original(builder, ptrs, mask, other, *rest)

        return create_masked_load

    def store(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def create_masked_store(builder: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._touch("write", ptrs, mask.data)
            self._one_value_each(ptrs, value.data, mask.data)
            return original(builder, ptrs, value, mask, *rest)

        return create_masked_store

    def atomic_rmw(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def create_atomic_rmw(builder: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
            self._touch("atomic", ptr, mask.data)
            return original(builder, op, ptr, val, mask, *rest)

        return create_atomic_rmw

    def atomic_cas(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def create_atomic_cas(builder: Any, ptr: Any, *rest: Any) -> Any:
            self._touch("atomic", ptr, np.ones(1, bool))
            return original(builder, ptr, *rest)

        return create_atomic_cas

    def _touch(self, kind: str, ptrs: Any, mask: NDArray[np.bool_]) -> None:
        width = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        try:
            if (addresses := _unmasked(ptrs.data, mask).view(np.int64)).size:
                self._memory.touch(kind, addresses, width, self._program)
        except Fault as fault:
            self._fault = fault
            raise

    def _one_value_each(self, ptrs: Any, value: NDArray[Any], mask: NDArray[np.bool_]) -> None:
        addresses, values = (
            _unmasked(ptrs.data, mask),
            _unmasked(np.broadcast_to(value, ptrs.data.shape), mask),
        )
        _, first, lane = np.unique(addresses, return_index=True, return_inverse=True)
        if len(first) == len(addresses):
            return
        as_bytes = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
        if (as_bytes[first][lane] != as_bytes).any():
            self._fault = Fault("lanes of one store write different values to one place")
            raise self._fault


def _unmasked(values: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Those of the lanes that take part, in one dimension."""
    return np.ascontiguousarray(values[np.broadcast_to(mask, values.shape).astype(bool)])


def _program(number: int) -> str:
    return f"program {number} of the launch" if number >= 0 else "several programs"
