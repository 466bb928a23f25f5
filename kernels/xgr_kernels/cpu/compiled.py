"""What every kernel that numba compiles for a CPU starts from: the decorator, instructions, exponentials.

numba's cache notices a change in the file of a kernel only, not in those it calls into: `keep_compiled_in`
wants another folder after every edit. Where nobody called it, delete the caches (`__pycache__/*.nb*`).
"""

import contextlib
import ctypes
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import caching, cgutils

log = logging.getLogger(__name__)

numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]
one_caller = Lock()  # for parallel kernels: the last of these layers bears one caller at a time

Scalar = Any  # a number whose width numba infers: np.float32, np.float64 or np.int64
Array = np.ndarray
Build = Any  # numba's and llvmlite's own objects, while an instruction is built

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 1 << 30
_OWN_MAPPING = 32 << 20  # the most that glibc takes

F = np.float32
LOW_LOG = F(-126.0)  # 2**-126, the least normal number: nothing beside a largest term of 1
LOG2_E = F(1.4426950408889634)
ROUNDER = F(1.5 * 2**23)  # adding it leaves the nearest integer in the low bits
# Chebyshev fit of 2**x on [-1/2, 1/2], relative error below 1e-7, exact at 0
C1, C2, C3, C4, C5 = F(0.693147182), F(0.240226462), F(0.0555032887), F(0.00961834099), F(0.00133951125)


def use_threads(count: int) -> None:
    """Let kernels and torch run on `count` threads each; with OpenMP they are the same ones.

    Call it once models are loaded. numba's first call tells OpenMP to use all cores, whatever torch was told.
    """
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    torch.set_num_threads(count)


def keep_freed_memory() -> None:
    """Let the next tensor have the memory of the last one. Call it once models are loaded.

    glibc gives the kernel what large tensors free, at once or as soon as it lies at the heap's end, and gets
    it back page by page, each zeroed, in the middle of the next layer. Here it keeps up to `_KEPT` bytes, and
    maps only what has more than `_OWN_MAPPING` bytes anew. Other C libraries stay as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING)


def spread_threads(backwards: bool = False) -> bool:
    """Keep every thread that computes on a core of its own, if there are as many as cores; True if so.

    This thread gets the first core, or `backwards` the last one. Two workers on the same cores that hand work
    to each other should differ in it: the one wakes while the other still runs Python.

    Linux wakes a thread where it was woken from, and on few cores looks for no idle one then: two threads
    that wait for each other share a core for a whole forward while another is idle, and it takes twice as
    long. Call it when all else is running: what this thread starts later stays on its core.
    """
    cores = sorted(os.sched_getaffinity(0), reverse=backwards) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2 or numba.get_num_threads() != len(cores):
        return False
    size = max(cores) // 64 + 1
    masks = np.zeros((len(cores), size), np.uint64)
    for mask, core in zip(masks, cores, strict=True):
        mask[core // 64] = 1 << core % 64
    with one_caller:
        _keep_on(masks)
    return bool(numba.threading_layer() == "omp")  # type: ignore[attr-defined]


_NumbaCache: Any = caching.FunctionCache


class _Cache(_NumbaCache):  # type: ignore[misc]
    """numba's. Damaged files and full disks are no reason to fail: the kernel compiles."""

    @property
    def _called(self) -> str:
        return str(self._py_func.__qualname__)

    def load_overload(self, signature: Build, context: Build) -> Build:
        try:
            return super().load_overload(signature, context)
        except Exception as error:  # unpickling raises whatever it likes
            log.warning("%s compiles again, what was kept of it is damaged: %s", self._called, error)
            with contextlib.suppress(OSError):
                self.flush()  # else it could not be kept anew
            return None

    def save_overload(self, signature: Build, data: Build) -> None:
        try:
            super().save_overload(signature, data)
        except OSError as error:
            log.warning("%s cannot be kept, it compiles at every start: %s", self._called, error)


_kernels: list[Any] = []  # all that `kernel` made


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """numba's njit, kept on disk: see `keep_compiled_in`."""

    def compile_later(function: Callable[..., Any]) -> Any:
        compiled = numba.njit(error_model="numpy", **options)(function)
        _kernels.append(compiled)
        _keep(compiled)
        return compiled

    return compile_later


def keep_compiled_in(folder: Path) -> None:
    """Let all kernels be read from `folder`, and put there once they are compiled. Call it before the first.

    Else they are where numba puts them: in `__pycache__` beside their sources or in a folder of the user's.
    """
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    for compiled in _kernels:
        _keep(compiled)


def _keep(compiled: Any) -> None:
    """As `enable_caching` of numba does. Where there is no place, the kernel compiles in every process."""
    with contextlib.suppress(RuntimeError):
        compiled._cache = _Cache(compiled.py_func)


def intrinsic(function: Callable[..., Build]) -> Any:
    """numba's intrinsic, for the type checker an opaque function."""
    return extending.intrinsic(function)


# ---- instructions that numba has no word for ---------------------------------------------------------------


@intrinsic
def pointer(typing: Build, address: Build) -> Build:
    """An int64 address as a pointer, for carray."""

    def build(context: Build, builder: Build, signature: Build, args: Build) -> Build:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), build


_sched_setaffinity: Any = types.ExternalFunction(
    "sched_setaffinity", types.int32(types.int32, types.uintp, types.voidptr)
)


@kernel(parallel=True)
def _keep_on(masks: Array) -> None:
    """Every thread on the cores whose bits are set in its row of `masks` [threads, words]."""
    for thread in numba.prange(len(masks)):
        _sched_setaffinity(0, 8 * masks.shape[1], pointer(masks[thread].ctypes.data))


def compile_thread_masks() -> None:
    """Compiles what `spread_threads` runs, and runs it not."""
    _keep_on.compile((types.uint64[:, ::1],))


@intrinsic
def to_bits(typing: Build, value: Build) -> Build:
    """The bits of a float32 as int32."""

    def build(context: Build, builder: Build, signature: Build, args: Build) -> Build:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), build


@intrinsic
def from_bits(typing: Build, bits: Build) -> Build:
    """The float32 that the bits of an int32 are."""

    def build(context: Build, builder: Build, signature: Build, args: Build) -> Build:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), build


@intrinsic
def power_of_two(typing: Build, rounded: Build) -> Build:
    """2**n as float32 from n + ROUNDER; kept in 32-bit integers so that it vectorises."""

    def build(context: Build, builder: Build, signature: Build, args: Build) -> Build:
        int32 = context.get_value_type(types.int32)
        shifted = builder.shl(builder.bitcast(args[0], int32), int32(23))
        return builder.bitcast(builder.add(shifted, int32(127 << 23)), context.get_value_type(types.float32))

    return types.float32(types.float32), build


@intrinsic
def maximum(typing: Build, a: Build, b: Build) -> Build:
    """The larger of two float32, NaN if one is; unlike a comparison it vectorises in spite of NaN."""

    def build(context: Build, builder: Build, signature: Build, args: Build) -> Build:
        float32 = context.get_value_type(types.float32)
        callee = ir.FunctionType(float32, [float32, float32])
        maximum: Build = cgutils.get_or_insert_function  # type: ignore[no-untyped-call,unused-ignore]
        return builder.call(maximum(builder.module, callee, "llvm.maximum.f32"), args)

    return types.float32(types.float32, types.float32), build


@intrinsic
def count_bits(typing: Build, word: Build) -> Build:
    """The number of set bits of a uint64."""

    def build(context: Build, builder: Build, signature: Build, args: Build) -> Build:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), build


# ---- exponentials ------------------------------------------------------------------------------------------


@kernel(fastmath={"contract"})
def exp2(y: Scalar) -> Scalar:
    """2**y for y <= 0; a NaN stays one."""
    y = LOW_LOG if y < LOW_LOG else y
    rounded = y + ROUNDER
    f = y - (rounded - ROUNDER)
    return (((((C5 * f + C4) * f + C3) * f + C2) * f + C1) * f + F(1)) * power_of_two(rounded)


@kernel(fastmath={"contract"})
def exp(x: Scalar) -> Scalar:
    """e**x for x <= 0; a NaN stays one."""
    return exp2(x * LOG2_E)
