"""What is no condition over the columns is refused: by a position, soon, and without reading a row."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from attribute_rows import columns_of, left_of

from xgr_runtime.catalog.attributes import AttributeColumn
from xgr_runtime.catalog.where import check_where
from xgr_runtime.errors import BadRequest

ROW = {"price": 1.5, "brand": "a", "tags": ["x"], "sold": "2026-01-01", "ok": True, "n": 1, "odd": {"a": 1}}

BAD = {
    "": (None, "empty"),
    "  \n": (None, "empty"),
    "-- all": (None, "comment"),
    "pric < 1": (1, "did you mean 'price'"),
    "ok AND nothing_like_it = 1": (8, "there is brand, n, ok, price, sold, tags"),
    "odd = 1": (1, "several kinds"),
    "Price < 1": (1, "no column 'Price'"),
    "price < 'a'": (1, "cannot be compared"),
    "price < '50'": (1, "cannot be compared"),
    "brand = 5": (1, "cannot be compared"),
    "ok = 1": (1, "cannot be compared"),
    "ok < ok": (1, "no order"),
    "tags = 'x'": (1, "write 'x' = ANY(list)"),
    "tags = tags": (1, "cannot be compared"),
    "brand": (1, "a condition must stand here"),
    "ok AND price": (8, "a condition must stand here"),
    "NOT brand": (5, "a condition must stand here"),
    "brand + 1 > 2": (1, "a number must stand here"),
    "price + 'a' > 2": (9, "a number must stand here"),
    "sold > 'tomorrow'": (8, "is no time"),
    "sold > TIMESTAMP '2026-13-01'": (18, "is no time"),
    "sold > TIMESTAMP brand": (8, "before a time in quotes"),
    "sold + 1 > sold": (1, "a number must stand here"),
    "price LIKE 'a%'": (1, "LIKE compares texts"),
    "brand LIKE brand": (1, "a pattern is a text in quotes"),
    "brand LIKE 'a!b' ESCAPE '!'": (12, "escapes"),
    "brand LIKE 'a' ESCAPE '!!'": (1, "one character"),
    "brand LIKE '" + "a" * 300 + "'": (1, "256 characters"),
    "1 = ANY(tags)": (1, "a text in quotes"),
    "brand = ANY(tags)": (1, "a text in quotes"),
    "'x' < ANY(tags)": (11, "ANY takes ="),
    "'x' = ANY(brand)": (11, "a list must stand here"),
    "array_contains(brand, 'x')": (16, "a list must stand here"),
    "array_contains(tags, 'x', 'y')": (1, "more than a condition takes"),
    "price < 99999999999999999999": (9, "too large"),
    "price < 1e999": (9, "too large"),
    "price < 1 2": (11, "no condition"),
    "price <": (7, "something is missing"),
    "AND ok": (5, "something is missing"),
    "price IN ()": (1, "a list in parentheses"),
    "price IN tags": (1, "more than a condition takes"),
    "(ok": (3, "not closed"),
    "ok)": (3, "closes nothing"),
    "brand = 'a": (9, "not closed"),
    'brand = "a': (9, "not closed"),
    "ok /* and */": (1, "comments"),
    "ok -- and": (1, "comments"),
    "ok; ok": (3, "semicolon"),
    "ok; DROP TABLE items": (3, "semicolon"),
    "SELECT 1": (1, "'SELECT' is not part"),
    "price IN (SELECT price FROM items)": (11, "'SELECT' is not part"),
    "EXISTS (SELECT 1)": (1, "'EXISTS' is not part"),
    "read_text('/etc/passwd') = 'a'": (1, "no function here"),
    "read_csv('a.csv')": (1, "no function here"),
    "lower(brand) = 'a'": (1, "no function here"),
    "\"lower\"(brand) = 'a'": (1, "no function here"),
    "brand = current_setting('home')": (9, "no function here"),
    "SET threads = 100": (1, "'SET' is not part"),
    "ATTACH 'a.db'": (8, "no condition"),
    "COPY items TO 'a.csv'": (1, "'COPY' is not part"),
    "PRAGMA version": (1, "'PRAGMA' is not part"),
    "CAST(price AS int) = 1": (1, "no function here"),
    "price::int = 1": (6, "'::' is not part"),
    "CASE WHEN ok THEN ok END": (1, "'CASE' is not part"),
    "price = ?": (9, "'?' is not part"),
    "price = $1": (9, "no name"),
    "price = :limit": (9, "':' is not part"),
    "items.price = 1": (6, "'.' is not part"),
    "brand || 'a' = 'b'": (7, "not part"),
    "tags[1] = 'x'": (5, "not part"),
    "ok ORDER BY price": (4, "not part"),
    "ok LIMIT 1": (4, "not part"),
    "ok AS fine": (4, "not part"),
    "price = 0x1F": (10, "no condition"),
    "brand = 'a' 'b'": (9, "not part"),
    "(price, n) = 1": (2, "not part"),
    "price IS n": (10, "IS takes"),
    "price BETWEEN SYMMETRIC 1 AND 2": (1, "more than a condition takes"),
    "price \x00 < 1": (7, "no character"),
    "brand = '\ud800'": (10, "no character"),
    "{{ price }} = 1": (1, "not part"),
    "`price` = 1": (1, "not part"),
}


@pytest.fixture(scope="module")
def columns() -> dict[str, AttributeColumn]:
    # Whoever reads a row of these falls over.
    nowhere: Any = None
    found = columns_of([ROW])
    return {name: column._replace(values=nowhere) for name, column in found.items()} | {"ok": found["ok"]}


@pytest.mark.parametrize(("sql", "position", "said"), [(sql, *rest) for sql, rest in BAD.items()])
def test_is_refused_by_position(
    sql: str, position: int | None, said: str, columns: dict[str, AttributeColumn]
) -> None:
    with pytest.raises(BadRequest) as refused:
        check_where(sql, columns)
    error = refused.value
    assert error.param == "filters.where" and error.status == 400
    assert said in error.message
    found = re.match(r"filters\.where(?: at character (\d+))?: ", error.message)
    assert found and (int(found[1]) if found[1] else None) == position, error.message
    assert len(error.message) < 900 and error.message.isprintable()


LONG = {
    "a megabyte": "ok OR " * 170_000 + "ok",
    "many words": "n IN (" + "1," * 2000 + "1)",
    "many operators": "ok OR " * 200 + "ok",
    "parentheses": "(" * 4000 + "ok" + ")" * 4000,
    "open parentheses": "(" * 8000,
    "quotation marks": "'" * 8_191,
    "double quotes": '"' * 8_191,
    "a long name": "a" * 8000,
    "NOT": "NOT " * 128 + "ok",
    "minus": "- " * 127 + "n = 1 1",
    "nested times": "TIMESTAMP (" * 600 + "ok" + ")" * 600,
    "nested lists": "ok = ANY(" * 24 + "tags" + ")" * 24,
    "nested functions": "array_contains(" * 24 + "tags" + ", 'x')" * 24,
    "nested conditions": "(n IN (1) AND n BETWEEN (1 + (" * 8 + "n" + ")) AND 2)" * 8,
    "semicolons": ";" * 8000,
    "comments": "/*" * 4000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_ones_are_refused_soon(name: str, columns: dict[str, AttributeColumn]) -> None:
    start = time.process_time()
    with pytest.raises(BadRequest) as refused:
        check_where(LONG[name], columns)
    assert time.process_time() - start < 2.0, "of which a tenth is usual"
    assert len(refused.value.message) < 900


def test_a_pattern_of_many_stars_takes_no_time_of_its_own() -> None:
    rows = [{"brand": "a" * 5000}]
    start = time.process_time()
    assert left_of("brand LIKE '" + "%a" * 100 + "%b'", rows) == []
    assert left_of("brand LIKE '" + "%a" * 100 + "%'", rows) == [0]
    assert time.process_time() - start < 2.0
