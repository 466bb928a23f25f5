"""Which column an attribute becomes, what does not fit, and what is refused of stored columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attribute_rows import Row, columns_of

from xgr_runtime.catalog.attributes import (
    AttributeColumn,
    AttributeField,
    AttributeKind,
    column_arrays,
    column_problem,
    declared_fields,
    expected_columns,
    stored_columns,
)
from xgr_runtime.errors import CatalogError

SEEN: dict[str, tuple[list[Any], AttributeKind]] = {
    "bools": ([True, False, None], "bool"),
    "ints": ([1, -(2**63), 2**63 - 1], "int"),
    "floats": ([1.5, 0.0], "float"),
    "ints and floats": ([1, 2.5], "float"),
    "texts": (["a", "", "é"], "string"),
    "times": (["2026-01-01", "2026-01-01T10:00:00Z", "1999-12-31 23:59:59.5+01:00"], "time"),
    "times and texts": (["2026-01-01", "soon"], "string"),
    "days that are none": (["2026-02-30"], "string"),
    "lists": ([["a", "b"], [], ["a"]], "strings"),
    "texts and numbers": (["a", 1], "other"),
    "bools and ints": ([True, 1], "other"),
    "beyond 64 bits": ([1, 2**63], "other"),
    "objects": ([{"a": 1}], "other"),
    "lists of numbers": ([[1, 2]], "other"),
    "lists and texts": ([["a"], "a"], "other"),
}


@pytest.mark.parametrize("name", SEEN)
def test_the_kind_is_that_of_all_values(name: str) -> None:
    values, kind = SEEN[name]
    assert columns_of([{"x": value} for value in values])["x"].kind == kind


def test_codes_are_in_the_order_of_the_texts_and_null_has_a_bit() -> None:
    rows: list[Row] = [{"b": "zoo", "t": ["q", "a"]}, {}, {"b": "ant", "t": []}, {"b": "zoo"}]
    columns = columns_of(rows)
    assert columns["b"].texts.texts() == [b"ant", b"zoo"] and columns["b"].values.tolist() == [1, 0, 0, 1]
    assert columns["b"].valid.tolist() == [0b1101]
    assert columns["t"].starts.tolist() == [0, 2, 2, 2, 2] and columns["t"].values.tolist() == [1, 0]
    assert columns["t"].valid.tolist() == [0b0101]


def test_columns_of_many_pieces_are_those_of_their_rows() -> None:
    rows = [{"n": n, "b": f"b{n % 1000}"} if n % 3 else {} for n in range(70_000)]
    columns = columns_of(rows)
    known = columns["n"].known(0, len(rows))
    assert known is not None and np.flatnonzero(known).tolist() == [n for n in range(len(rows)) if n % 3]
    assert columns["n"].values[known].tolist() == [n for n in range(len(rows)) if n % 3]
    texts = columns["b"].texts.texts()
    assert [texts[code] for code in columns["b"].values[known].tolist()] == [
        b"b%d" % (n % 1000) for n in range(len(rows)) if n % 3
    ]


FITS: list[tuple[AttributeKind, Any, Any]] = [
    ("int", "12", 12),
    ("int", "-3", -3),
    ("float", "2.5", 2.5),
    ("float", 3, 3.0),
    ("bool", "True", 1),
    ("time", "1970-01-01T00:00:01+00:00", 1_000_000),
]
FITS_NOT: list[tuple[AttributeKind, Any]] = [
    ("int", 1.5),
    ("int", "1.0"),
    ("int", 2**63),
    ("int", True),
    ("float", "nan"),
    ("float", "1e999"),
    ("float", True),
    ("bool", 1),
    ("bool", "yes"),
    ("string", 1),
    ("strings", "a"),
    ("strings", ["a", None]),
    ("time", "yesterday"),
    ("time", 1_700_000_000),
]


@pytest.mark.parametrize(("kind", "value", "stored"), FITS)
def test_text_of_tables_fits_what_is_declared(kind: AttributeKind, value: Any, stored: Any) -> None:
    column = columns_of([{"x": value}, {"x": ""}], [AttributeField("x", kind)])["x"]
    assert column.values[0] == stored and column.valid.tolist() == [1]


@pytest.mark.parametrize(("kind", "value"), FITS_NOT)
def test_what_does_not_fit_is_refused_by_name_and_item(kind: AttributeKind, value: Any) -> None:
    with pytest.raises(CatalogError, match=r"item 'i1': attribute 'x' is .*: correct it, or the type"):
        columns_of([{}, {"x": value}], [AttributeField("x", kind)])


def test_attributes_that_are_not_declared_have_no_column() -> None:
    assert list(columns_of([{"a": 1, "b": 2}], [AttributeField("b", "int")])) == ["b"]


def test_more_attributes_than_columns_are_refused_with_the_remedy() -> None:
    with pytest.raises(
        CatalogError, match=r'300 different attributes, .* under "attributes" in catalog\.json'
    ):
        columns_of([{f"a{n}": n for n in range(300)}])


@pytest.mark.parametrize("found", [["price"], {"price": "number"}, {"price": "other"}, {"price": 1}, "price"])
def test_a_declaration_that_means_nothing_is_refused(found: Any) -> None:
    with pytest.raises(CatalogError, match=r"attributes holds .*: write an object of names"):
        declared_fields({"attributes": found}, Path("catalog.json"))


def test_what_is_stored_is_what_was_gathered() -> None:
    rows: list[Row] = [{"b": "x", "t": ["q"], "n": 1, "o": {}, "f": 0.5, "k": True, "d": "2026-01-01"}, {}]
    columns = columns_of(rows)
    arrays = column_arrays(list(columns.values()))
    shapes = expected_columns(arrays, len(rows))
    assert {name: (array.dtype.str, array.shape) for name, array in arrays.items()} == shapes
    again = stored_columns(arrays)
    assert list(again) == list(columns) == sorted(columns)
    for name, column in columns.items():
        assert column_problem(column, len(rows)) is None
        for part in ("values", "valid", "starts"):
            assert np.array_equal(getattr(column, part), getattr(again[name], part))
        assert column.texts.texts() == again[name].texts.texts() if len(column.texts.offsets) else True


def _changed(column: AttributeColumn, part: str, value: Any) -> AttributeColumn:
    if part in ("blob", "offsets"):
        return column._replace(texts=column.texts._replace(**{part: value}))
    return column._replace(**{part: value})


DAMAGED: list[tuple[str, str, Any]] = [
    ("b", "values", np.array([0, 2, 0], np.int32)),
    ("b", "values", np.array([0, -1, 0], np.int32)),
    ("b", "offsets", np.array([0, 2, 1], np.int64)),
    ("b", "offsets", np.array([0, 1, 1], np.int64)),
    ("b", "blob", np.frombuffer(b"yx", np.uint8)),
    ("b", "blob", np.frombuffer(b"x\xff", np.uint8)),
    ("b", "valid", np.array([0b1011], np.uint8)),
    ("t", "starts", np.array([0, 2, 1, 1], np.int64)),
    ("t", "starts", np.array([0, 1, 1, 2], np.int64)),
    ("t", "values", np.array([5], np.int32)),
    ("k", "values", np.array([0, 2, 0], np.uint8)),
    ("f", "values", np.array([0, np.nan, 0])),
]


@pytest.mark.parametrize(("name", "part", "value"), DAMAGED)
def test_values_that_kernels_must_not_follow_are_found(name: str, part: str, value: Any) -> None:
    rows: list[Row] = [{"b": "x", "t": ["q"], "k": True, "f": 0.5}, {"b": "y"}, {}]
    column = columns_of(rows)[name]
    assert column_problem(column, 3) is None
    problem = column_problem(_changed(column, part, value), 3)
    assert problem is not None and problem.startswith(f"attribute '{name}'")
