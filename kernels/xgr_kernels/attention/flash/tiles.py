"""The inner loops of attention on a CPU, in vectors that stay in registers.

numba's vectoriser does not find a product's tile of sums, and takes four times as long for the exponentials
of a softmax, so these loops are spelled in LLVM's instructions. They take addresses of float32, and count
and stride in numbers; a row is LANES of them, and rows follow one another. Caches do not notice an edit
here: see `compiled`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from xgr_kernels.cpu import compiled
from xgr_kernels.cpu.compiled import Build, Scalar, intrinsic

_AVX512 = bool(llvm.get_host_cpu_features().get("avx512f"))
_WIDTH = 16 if _AVX512 else 8  # of a vector; where registers are narrower it takes several
_VECTORS = 2  # of a row
LANES = _WIDTH * _VECTORS
ROWS = 8 if _AVX512 else 4  # of a tile of sums: more would leave no registers for what is multiplied

_INT64, _INT32, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_VECTOR, _BITS = ir.VectorType(_FLOAT, _WIDTH), ir.VectorType(_INT32, _WIDTH)


def _loop(write: Callable[..., None]) -> Any:
    """What `write(builder, *arguments)` spells, as a function of int64 for kernels."""
    names = inspect.signature(write)

    def declare(typing: Build, *_: Build) -> Build:
        def build(context: Build, builder: Build, signature: Build, args: Build) -> Build:
            write(builder, *args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * (len(names.parameters) - 1)), build

    declare.__signature__ = names  # type: ignore[attr-defined]  # numba counts arguments by it
    return intrinsic(declare)


# ---- instructions ------------------------------------------------------------------------------------------


def _pointer(builder: Build, address: Build, index: Build, kind: Build) -> Build:
    return builder.inttoptr(builder.add(address, builder.mul(index, _INT64(4))), kind.as_pointer())


def _row(builder: Build, address: Build, row: Build) -> list[Build]:
    """Pointers to the vectors of a row."""
    first = builder.mul(row, _INT64(LANES))
    starts = [builder.add(first, _INT64(v * _WIDTH)) for v in range(_VECTORS)]
    return [_pointer(builder, address, start, _VECTOR) for start in starts]


def _load(builder: Build, pointers: list[Build]) -> list[Build]:
    return [builder.load(pointer, align=4) for pointer in pointers]


def _variables(builder: Build, starts: list[Build]) -> list[Build]:
    """LLVM makes registers of them."""
    return [cgutils.alloca_once_value(builder, start) for start in starts]  # type: ignore[no-untyped-call,unused-ignore]


def _store(builder: Build, variables: list[Build], pointers: list[Build]) -> None:
    for variable, pointer in zip(variables, pointers, strict=True):
        builder.store(builder.load(variable), pointer, align=4)


def _each(builder: Build, count: Build) -> Build:
    return cgutils.for_range(builder, count)  # type: ignore[no-untyped-call,unused-ignore]


def _constant(number: Scalar) -> Build:
    return ir.Constant(_VECTOR, [float(number)] * _WIDTH)


def _integer(number: int) -> Build:
    return ir.Constant(_BITS, [number] * _WIDTH)


def _spread(builder: Build, number: Build) -> Build:
    """A vector of one number."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(nothing, number, _INT32(0)), nothing, _integer(0))


def _multiply_add(builder: Build, a: Build, b: Build, c: Build) -> Build:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    declare: Build = cgutils.get_or_insert_function  # type: ignore[no-untyped-call,unused-ignore]
    return builder.call(declare(builder.module, kind, f"llvm.fmuladd.v{_WIDTH}f32"), [a, b, c])


def _exp2(builder: Build, y: Build) -> Build:
    """See `compiled.exp2`."""
    low, rounder = _constant(compiled.LOW_LOG), _constant(compiled.ROUNDER)
    y = builder.select(builder.fcmp_ordered("<", y, low), low, y)
    rounded = builder.fadd(y, rounder)
    f = builder.fsub(y, builder.fsub(rounded, rounder))
    value = _constant(compiled.C5)
    for c in (compiled.C4, compiled.C3, compiled.C2, compiled.C1, 1.0):
        value = _multiply_add(builder, value, f, _constant(c))
    bits = builder.add(builder.shl(builder.bitcast(rounded, _BITS), _integer(23)), _integer(127 << 23))
    return builder.fmul(value, builder.bitcast(bits, _VECTOR))


# ---- loops -------------------------------------------------------------------------------------------------


def _product(add: bool) -> Any:
    """c [ROWS, LANES] = or += a [ROWS, n] times b [n, LANES]; a has strides, b and c are rows."""

    def write(builder: Build, a: Build, a_row: Build, a_step: Build, b: Build, c: Build, n: Build) -> None:
        out = [pointer for r in range(ROWS) for pointer in _row(builder, c, _INT64(r))]
        sums = _variables(builder, _load(builder, out) if add else [_constant(0)] * len(out))
        with _each(builder, n) as loop:
            lanes = _load(builder, _row(builder, b, loop.index))
            for r in range(ROWS):
                at = builder.add(builder.mul(a_row, _INT64(r)), builder.mul(a_step, loop.index))
                number = _spread(builder, builder.load(_pointer(builder, a, at, _FLOAT), align=4))
                for many, total in zip(lanes, sums[r * _VECTORS : (r + 1) * _VECTORS], strict=True):
                    builder.store(_multiply_add(builder, number, many, builder.load(total)), total)
        _store(builder, sums, out)

    return _loop(write)


def _raise_tops(builder: Build, scores: Build, n: Build, tops: Build) -> None:
    """tops [LANES] = the largest of themselves and scores [n, LANES]; a NaN among scores is passed over."""
    out = _row(builder, tops, _INT64(0))
    highest = _variables(builder, _load(builder, out))
    with _each(builder, n) as loop:
        for score, top in zip(_load(builder, _row(builder, scores, loop.index)), highest, strict=True):
            before = builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", score, before), score, before), top)
    _store(builder, highest, out)


def _exponentials(builder: Build, scores: Build, n: Build, tops: Build, totals: Build) -> None:
    """scores [n, LANES] = 2 ** (scores - tops [LANES]), and totals [LANES] += their sums; a NaN stays one."""
    out = _row(builder, totals, _INT64(0))
    highest, sums = _load(builder, _row(builder, tops, _INT64(0))), _variables(builder, _load(builder, out))
    with _each(builder, n) as loop:
        row = _row(builder, scores, loop.index)
        for score, pointer, top, total in zip(_load(builder, row), row, highest, sums, strict=True):
            weight = _exp2(builder, builder.fsub(score, top))
            builder.store(weight, pointer, align=4)
            builder.store(builder.fadd(builder.load(total), weight), total)
    _store(builder, sums, out)


def _scale(builder: Build, x: Build, n: Build, factors: Build) -> None:
    """x [n, LANES] *= factors [LANES]."""
    by = _load(builder, _row(builder, factors, _INT64(0)))
    with _each(builder, n) as loop:
        row = _row(builder, x, loop.index)
        for value, pointer, factor in zip(_load(builder, row), row, by, strict=True):
            builder.store(builder.fmul(value, factor), pointer, align=4)


product, add_product = _product(add=False), _product(add=True)
raise_tops, exponentials, scale = _loop(_raise_tops), _loop(_exponentials), _loop(_scale)
