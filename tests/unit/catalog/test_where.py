"""Random expressions of SQL over random rows with NULLs leave what a row by row evaluation leaves."""

from __future__ import annotations

import math
import operator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from attribute_rows import (
    Condition,
    Row,
    and_,
    columns_of,
    doubles,
    instant,
    left_of,
    lifted,
    like,
    live_on,
    not_,
    or_,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from xgr_runtime.catalog.attributes import AttributeField
from xgr_runtime.catalog.places import LeafPlaces
from xgr_runtime.catalog.where import ItemRows, KeptFilters
from xgr_runtime.errors import BadRequest

NUMBERS = ("n", "m", "price")
TEXTS = ("brand", "maker")
FIELDS = [
    AttributeField("brand", "string"),
    AttributeField("maker", "string"),
    AttributeField("m", "int"),
    AttributeField("n", "int"),
    AttributeField("ok", "bool"),
    AttributeField("price", "float"),
    AttributeField("sold", "time"),
    AttributeField("tags", "strings"),
]
words = st.sampled_from(["", "a", "b", "ab", "aab", "Ab", "é", "a%b", "a_b", "ü😀", "it's"])
days = st.sampled_from(["2025-12-31", "2026-01-01", "2026-01-01T12:30:00", "2026-01-01T12:30:00.25+02:00"])
whole = st.integers(-3, 5) | st.sampled_from([2**53 + 1, -(2**62)])
real = st.sampled_from([-1.5, 0.0, 0.5, 2.0, 3.25, 1e300])
rows_of = st.lists(
    st.fixed_dictionaries(
        {
            "brand": st.none() | words,
            "maker": st.none() | words,
            "m": st.none() | whole,
            "n": st.none() | whole,
            "ok": st.none() | st.booleans(),
            "price": st.none() | real,
            "sold": st.none() | days,
            "tags": st.none() | st.lists(words, max_size=3),
        }
    ),
    min_size=1,
    max_size=40,
)
COMPARED = {
    "=": operator.eq,
    "<>": operator.ne,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
COMPUTED = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": math.fmod}


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def named(name: str) -> Condition:
    return Condition(name, lambda row: row[name])


def value(number: int | float) -> Condition:
    return Condition(repr(number), lambda row: number)


NULL = Condition("NULL", lambda row: None)
number = (
    st.sampled_from([named(name) for name in NUMBERS]) | whole.map(value) | real.map(value) | st.just(NULL)
)
text = (
    st.sampled_from([named(name) for name in TEXTS])
    | words.map(lambda word: Condition(quoted(word), lambda row: word))
    | st.just(NULL)
)
time = st.just(Condition("sold", lambda row: row["sold"] and instant(row["sold"]))) | days.map(
    lambda day: Condition(f"TIMESTAMP '{day}'", lambda row: instant(day))
)


@st.composite
def sums(draw: st.DrawFn) -> Condition:
    left, right, sign = draw(number), draw(number), draw(st.sampled_from(sorted(COMPUTED)))
    compute = doubles(COMPUTED[sign])
    return Condition(f"({left.sql} {sign} {right.sql})", lambda row: compute(left.of(row), right.of(row)))


@st.composite
def comparisons(draw: st.DrawFn) -> Condition:
    kind = draw(st.sampled_from([number | sums(), text, time]))
    left, right, sign = draw(kind), draw(kind), draw(st.sampled_from(sorted(COMPARED)))
    compare = lifted(COMPARED[sign])
    return Condition(
        f"{left.sql} {sign} {right.sql}",
        lambda row: compare(comparable(left.of(row)), comparable(right.of(row))),
    )


def comparable(cell: Any) -> Any:
    """Texts compare by their UTF-8."""
    return cell.encode() if isinstance(cell, str) else cell


@st.composite
def betweens(draw: st.DrawFn) -> Condition:
    kind = draw(st.sampled_from([number, text, time]))
    inner, low, high = draw(kind), draw(kind), draw(kind)
    negated = draw(st.booleans())

    def of(row: Row) -> Any:
        a, b, c = (comparable(side.of(row)) for side in (inner, low, high))
        found = and_(lifted(operator.ge)(a, b), lifted(operator.le)(a, c))
        return not_(found) if negated else found

    return Condition(f"{inner.sql} {'NOT ' * negated}BETWEEN {low.sql} AND {high.sql}", of)


@st.composite
def memberships(draw: st.DrawFn) -> Condition:
    kind = draw(st.sampled_from([number, text, time]))
    inner, members = draw(kind), draw(st.lists(kind, min_size=1, max_size=4))
    negated = draw(st.booleans())

    def of(row: Row) -> Any:
        found: Any = False
        for member in members:
            found = or_(found, lifted(operator.eq)(inner.of(row), member.of(row)))
        return not_(found) if negated else found

    return Condition(f"{inner.sql} {'NOT ' * negated}IN ({', '.join(m.sql for m in members)})", of)


@st.composite
def patterns(draw: st.DrawFn) -> Condition:
    inner = draw(text)
    pattern = draw(st.text("ab%_é'A", max_size=5))
    fold, negated = draw(st.booleans()), draw(st.booleans())

    def of(row: Row) -> Any:
        found = lifted(lambda cell: like(cell, pattern, fold))(inner.of(row))
        return not_(found) if negated else found

    word = "NOT " * negated + ("ILIKE" if fold else "LIKE")
    return Condition(f"{inner.sql} {word} {quoted(pattern)}", of)


@st.composite
def lists(draw: st.DrawFn) -> Condition:
    word = draw(words)
    sql = draw(st.sampled_from(["{0} = ANY(tags)", "ANY(tags) = {0}", "array_contains(tags, {0})"]))
    return Condition(
        sql.format(quoted(word)),
        lambda row: lifted(lambda cell: word in cell)(row["tags"]),
    )


@st.composite
def sameness(draw: st.DrawFn) -> Condition:
    kind = draw(st.sampled_from([number, text]))
    left, right, negated = draw(kind), draw(kind), draw(st.booleans())
    return Condition(
        f"{left.sql} IS {'NOT ' * negated}DISTINCT FROM {right.sql}",
        lambda row: (left.of(row) == right.of(row)) is negated,
    )


leaf = (
    comparisons()
    | betweens()
    | memberships()
    | patterns()
    | lists()
    | sameness()
    | st.sampled_from(
        [named("ok"), Condition("TRUE", lambda row: True), Condition("FALSE", lambda row: False), NULL]
    )
)


def joined(conditions: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    def pair(left: Condition, right: Condition, sign: str) -> Condition:
        if sign == "=":
            return Condition(
                f"({left.sql}) = ({right.sql})", lambda row: lifted(operator.eq)(left.of(row), right.of(row))
            )
        join = and_ if sign == "AND" else or_
        return Condition(f"({left.sql} {sign} {right.sql})", lambda row: join(left.of(row), right.of(row)))

    def single(inner: Condition, form: str) -> Condition:
        wanted: dict[str, Any] = {
            "NOT ({})": lambda cell: not_(cell),
            "({}) IS NULL": lambda cell: cell is None,
            "({}) IS NOT NULL": lambda cell: cell is not None,
            "({}) IS TRUE": lambda cell: cell is True,
            "({}) IS NOT FALSE": lambda cell: cell is not False,
        }
        return Condition(form.format(inner.sql), lambda row: wanted[form](inner.of(row)))

    forms = ["NOT ({})", "({}) IS NULL", "({}) IS NOT NULL", "({}) IS TRUE", "({}) IS NOT FALSE"]
    return st.builds(pair, conditions, conditions, st.sampled_from(["AND", "OR", "="])) | st.builds(
        single, conditions, st.sampled_from(forms)
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(leaf, joined, max_leaves=6), rows_of)
def test_random_expressions_leave_what_rows_say_one_by_one(condition: Condition, rows: list[Row]) -> None:
    expected = [n for n, row in enumerate(rows) if condition.of(row) is True]
    assert left_of(condition.sql, rows, FIELDS) == expected, condition.sql


@pytest.mark.parametrize("kept", [0.01, 0.6, 1.0])
@pytest.mark.parametrize("shared", ["none", "some", "one leaf of all"])
def test_a_leaf_lives_if_any_of_its_rows_does(kept: float, shared: str) -> None:
    rng = np.random.default_rng(1)
    items = 70_001
    first = {"none": np.arange(1, items), "some": rng.choice(np.arange(1, items), items // 3, replace=False)}
    item_lo = np.concatenate([[0], np.sort(first.get(shared, [])), [items]]).astype(np.int32)
    column = columns_of([{"n": 1}])["n"]
    numbers = rng.random(items) < kept
    live = live_on("n = 1", {"n": column._replace(values=numbers.astype(np.int64))}, item_lo)
    alive = [n for n, (a, b) in enumerate(pairwise(item_lo)) if numbers[a:b].any()]
    bits = np.unpackbits(live.leaves.bits.view(np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == alive
    assert live.leaves.live(len(item_lo) - 1) == len(alive) and len(bits) >= len(item_lo) - 1
    assert np.array_equal(live.holds(np.arange(items)), numbers)


def test_a_text_beside_a_time_is_a_time() -> None:
    rows = [{"sold": "2026-01-01"}, {"sold": "2026-01-02T00:00:00Z"}, {}]
    assert left_of("sold > '2026-01-01'", rows) == [1]
    assert left_of("sold IN ('2026-01-01', '2026-01-02')", rows) == [0, 1]
    assert left_of("'2026-01-02' >= sold", rows) == [0, 1]


def test_names_with_letters_of_all_kinds_stand_in_double_quotes() -> None:
    rows = [{"in stock?": True, "order": 1}, {"order": 2}]
    assert left_of('"in stock?" AND "order" = 1', rows) == [0]


def test_what_was_evaluated_is_kept_and_the_least_recently_used_goes_first() -> None:
    columns = columns_of([{"n": n} for n in range(1000)])
    item_lo, leaf_of_row = np.arange(1001, dtype=np.int32), np.arange(1000, dtype=np.int32)
    one = live_on("n = 1", columns, item_lo).nbytes
    items = ItemRows.built(columns, LeafPlaces(item_lo, leaf_of_row))
    kept = KeptFilters(items, 3 * one)
    for n in (1, 2, 3, 1):
        assert kept.left_by(f"n = {n}").holds(np.arange(1000)).nonzero()[0].tolist() == [n]
    assert (kept.held_bytes, kept.hits, kept.misses) == (3 * one, 1, 3)
    kept.left_by("n = 4")
    assert [n for n in (1, 2, 3, 4) if f"n = {n}" in kept] == [1, 3, 4]
    assert (kept.held_bytes, kept.hits, kept.misses) == (3 * one, 1, 4)
    with pytest.raises(BadRequest):
        kept.left_by("m = 1")
    assert kept.left_by("n = 4") is kept.left_by("n = 4")
    small = KeptFilters(items, one - 1)
    assert small.left_by("n = 1").leaves.live(1000) == 1
    assert "n = 1" not in small and small.held_bytes == 0
