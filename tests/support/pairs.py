"""Tests of every two values together, where all values together would be a product of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Row = tuple[int, ...]


def by_pairs(axes: Mapping[str, Sequence[Any]]) -> pytest.MarkDecorator:
    """As a `parametrize` of each axis, but any two values of different axes meet in one test at least.

    An axis is named as in `parametrize`: with several names its values are tuples.
    """
    names, values = list(axes), list(axes.values())
    cases = []
    for row in rows_of_pairs([len(value) for value in values]):
        chosen = [value[index] for value, index in zip(values, row, strict=True)]
        ids = [str(x) if "," in name else f"{name}={x}" for name, x in zip(names, chosen, strict=True)]
        flat = [x for name, v in zip(names, chosen, strict=True) for x in (v if "," in name else [v])]
        cases.append(pytest.param(*flat, id="-".join(ids)))
    return pytest.mark.parametrize(",".join(names), cases)


def rows_of_pairs(sizes: Sequence[int]) -> list[Row]:
    """Indices into axes of these sizes; greedily the row next that brings most pairs not met before."""
    rows = list(product(*map(range, sizes)))
    left = {pair for row in rows for pair in _pairs(row)}
    chosen = []
    while left:
        best = max(rows, key=lambda row: sum(pair in left for pair in _pairs(row)))
        left -= set(_pairs(best))
        chosen.append(best)
    return chosen


def _pairs(row: Row) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Of (axis, index) each."""
    return list(combinations(enumerate(row), 2))
