"""Values of some rows at a time, with the three values of SQL: true, false and NULL.

A part of an expression gives `Cells` for the rows [first, last) of a piece: values, and which are known.
Values of rows that are not known mean nothing, but conditions are false there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xgr_runtime.catalog.attributes import AttributeColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]

PIECE = 1 << 15
"""Rows that are evaluated together, a multiple of 64: what an expression needs of them stays in the cache."""


class Cells(NamedTuple):
    """`values` [rows] or one for all rows; `known` [rows], None where every value is."""

    values: Any
    known: Bools | None


Run = Callable[[int, int], Cells]
"""The cells of rows [first, last)."""


def column_cells(column: AttributeColumn) -> Run:
    """What the column holds: bools, numbers, microseconds, or codes of texts."""
    values = column.values.view(np.bool_) if column.kind == "bool" else column.values

    def run(first: int, last: int) -> Cells:
        known = column.known(first, last)
        found = values[first:last]
        return Cells(found & known if column.kind == "bool" and known is not None else found, known)

    return run


def constant(value: bool | int | float) -> Run:
    """One value for all rows."""
    cells = Cells(np.asarray(value), None)
    return lambda first, last: cells


def nothing(first: int, last: int) -> Cells:
    """NULL in every row."""
    return Cells(np.zeros(last - first, np.bool_), np.zeros(last - first, np.bool_))


def both(left: Bools | None, right: Bools | None) -> Bools | None:
    """Where both are known."""
    return right if left is None else left if right is None else left & right


def compared(compare: Callable[[Any, Any], Any], left: Run, right: Run) -> Run:
    """A comparison; NULL where a side is."""

    def run(first: int, last: int) -> Cells:
        a, b = left(first, last), right(first, last)
        known = both(a.known, b.known)
        values = np.broadcast_to(compare(a.values, b.values), last - first)
        return Cells(values if known is None else values & known, known)

    return run


def computed(compute: Callable[[Any, Any], Any], left: Run, right: Run) -> Run:
    """Arithmetic of doubles; NULL where a side is, and where there is no finite result."""

    def run(first: int, last: int) -> Cells:
        a, b = left(first, last), right(first, last)
        with np.errstate(all="ignore"):
            result = compute(np.asarray(a.values, np.float64), np.asarray(b.values, np.float64))
        finite = np.isfinite(result)
        if finite.all():
            return Cells(result, both(a.known, b.known))
        return Cells(result, both(np.broadcast_to(finite, last - first), both(a.known, b.known)))

    return run


def false(cells: Cells) -> Bools:
    """Where a condition is false, and not NULL."""
    found: Bools = ~cells.values if cells.known is None else cells.known & ~cells.values
    return found


def conjunction(left: Run, right: Run) -> Run:
    """AND: false where a side is false, whatever the other."""

    def run(first: int, last: int) -> Cells:
        a, b = left(first, last), right(first, last)
        values = a.values & b.values
        if a.known is None and b.known is None:
            return Cells(values, None)
        return Cells(values, values | false(a) | false(b))

    return run


def negation(inner: Run) -> Run:
    """NOT: NULL stays."""

    def run(first: int, last: int) -> Cells:
        cells = inner(first, last)
        return Cells(false(cells), cells.known)

    return run


def disjunction(left: Run, right: Run) -> Run:
    """OR: true where a side is true, whatever the other."""
    return negation(conjunction(negation(left), negation(right)))


def is_null(inner: Run) -> Run:
    """IS NULL, which is never NULL itself."""

    def run(first: int, last: int) -> Cells:
        known = inner(first, last).known
        return Cells(np.zeros(last - first, np.bool_) if known is None else ~known, None)

    return run


def is_truth(inner: Run, wanted: bool) -> Run:
    """IS TRUE or IS FALSE: NULL is neither."""

    def run(first: int, last: int) -> Cells:
        cells = inner(first, last)
        return Cells(cells.values if wanted else false(cells), None)

    return run


def same(left: Run, right: Run) -> Run:
    """IS NOT DISTINCT FROM: NULL equals NULL."""

    def run(first: int, last: int) -> Cells:
        a, b = left(first, last), right(first, last)
        whole = np.ones(last - first, np.bool_)
        known_a, known_b = (whole if side.known is None else side.known for side in (a, b))
        return Cells(np.where(known_a & known_b, a.values == b.values, known_a == known_b), None)

    return run


def among(inner: Run, members: Sequence[int | float]) -> Run:
    """Whether a number is one of `members`; whole ones are compared exactly with whole numbers."""
    whole = np.array([m for m in members if type(m) is int], np.int64)
    real = np.array([m for m in members if type(m) is float], np.float64)

    def run(first: int, last: int) -> Cells:
        values, known = inner(first, last)
        found = np.zeros(last - first, np.bool_)
        for wanted in (whole, real):
            if len(wanted):
                found |= np.isin(values, wanted)
        return Cells(found if known is None else found & known, known)

    return run


def looked_up(codes: Run, table: Bools) -> Run:
    """table[code] of each row's text."""

    def run(first: int, last: int) -> Cells:
        values, known = codes(first, last)
        found = table.take(values, mode="clip")  # codes are within the table, and this is faster
        return Cells(found if known is None else found & known, known)

    return run


def mapped(codes: Run, numbers: NDArray[np.int64]) -> Run:
    """numbers[code] of each row's text."""

    def run(first: int, last: int) -> Cells:
        values, known = codes(first, last)
        return Cells(numbers[values], known)

    return run


def holds(column: AttributeColumn, code: int | None) -> Run:
    """Whether a row's list has the text of that code; None: a text that no list has."""

    def run(first: int, last: int) -> Cells:
        known = column.known(first, last)
        found = np.zeros(last - first, np.bool_)
        if code is not None:
            starts = column.starts[first : last + 1]
            places = np.flatnonzero(column.values[starts[0] : starts[-1]] == code) + starts[0]
            found[np.searchsorted(starts, places, side="right") - 1] = True
        return Cells(found if known is None else found & known, known)

    return run


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "mod": np.fmod,
}
