"""From a tree to what evaluates it: names become columns, types are checked, constants prepared.

Nothing here reads a row, so whatever is wrong with an expression is found without evaluating it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlglot import expressions as exp

from xgr_runtime.catalog.attributes import AttributeColumn
from xgr_runtime.catalog.attributes.kinds import INT64, microseconds
from xgr_runtime.catalog.where import texts, values
from xgr_runtime.catalog.where.tree import position
from xgr_runtime.catalog.where.words import refuse

if TYPE_CHECKING:
    from sqlglot import Expr

    from xgr_runtime.catalog.where.values import Run

_KINDS = {
    "bool": "bool",
    "int": "number",
    "float": "number",
    "string": "text",
    "strings": "list",
    "time": "time",
}
_SAID = {
    "bool": "a condition",
    "number": "a number",
    "text": "a text",
    "list": "a list",
    "time": "a time",
    "null": "NULL",
}


@dataclass(frozen=True)
class Bound:
    """A part of an expression. `constant` has a value where it is the same for all rows."""

    kind: str  # of _SAID
    run: Run
    node: Expr
    constant: Any = None
    column: AttributeColumn | None = None  # of a text or a list

    @property
    def said(self) -> str:
        return f"{self.node.sql()!r:.60} is {_SAID[self.kind]}"


def bind(tree: Expr, columns: Mapping[str, AttributeColumn]) -> Run:
    """What gives the rows in which the condition is true. Raises BadRequest naming a position."""
    try:
        return _condition(_Binder(columns).bound(tree)).run
    except RecursionError:
        refuse("it is nested too deeply: write it flatter")


def _condition(bound: Bound) -> Bound:
    """A part that stands where a condition must. Raises BadRequest."""
    if bound.kind not in ("bool", "null"):
        refuse(f"{bound.said}, a condition must stand here", position(bound.node))
    return bound


class _Binder:
    """Binds the parts of one expression to the columns of one catalog."""

    def __init__(self, columns: Mapping[str, AttributeColumn]) -> None:
        self._columns = columns

    def bound(self, node: Expr) -> Bound:
        """The part under `node`. Raises BadRequest."""
        kind = type(node)
        if kind in (exp.And, exp.Or):
            left, right = (_condition(self.bound(side)) for side in _sides(node))
            join = values.conjunction if kind is exp.And else values.disjunction
            return Bound("bool", join(left.run, right.run), node)
        if kind in (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod):
            left, right = (self._number(side) for side in _sides(node))
            return Bound("number", values.computed(values.ARITHMETIC[node.key], left.run, right.run), node)
        if node.key in values.COMPARISONS:
            return self._comparison(node)
        if kind in (exp.NullSafeEQ, exp.NullSafeNEQ):
            left, right = map(self.bound, _sides(node))
            run = values.same(*self._alike(left, right, node, ordered=False))
            return Bound("bool", run if kind is exp.NullSafeEQ else values.negation(run), node)
        return self._others[kind](self, node)

    def _name(self, node: Expr) -> Bound:
        name = node.name
        column = self._columns.get(name)
        if column is None:
            refuse(f"there is no column {name!r:.80}: {self._offer(name)}", position(node))
        if column.kind == "other":
            refuse(
                f"the column {name!r:.80} holds values of several kinds, or such as filters do not read: "
                'declare it under "attributes" in catalog.json',
                position(node),
            )
        kind = _KINDS[column.kind]
        return Bound(kind, values.column_cells(column), node, column=column)

    def _offer(self, name: str) -> str:
        names = [key for key, column in self._columns.items() if column.kind != "other"]
        if not names:
            return "the catalog has none; it gets them when it is built from items with attributes"
        close = get_close_matches(name[:80], names, 1)
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return (f"did you mean {close[0]!r}? " if close else "") + f"there is {listed}"[:600]

    def _literal(self, node: Expr) -> Bound:
        text = node.name
        if node.is_string:
            return Bound("text", values.nothing, node, constant=text)
        number: int | float = int(text) if text.isdecimal() else float(text)
        if (type(number) is int and number not in INT64) or abs(number) == float("inf"):
            refuse(f"the number {text:.40} is too large for 64 bits", position(node))
        return Bound("number", values.constant(number), node, constant=number)

    def _truth(self, node: Expr) -> Bound:
        value = bool(node.this)
        return Bound("bool", self._all(value), node)

    def _all(self, value: bool) -> Run:
        return lambda first, last: values.Cells(np.full(last - first, value), None)

    def _null(self, node: Expr) -> Bound:
        return Bound("null", values.nothing, node)

    def _time(self, node: Expr) -> Bound:
        if not isinstance(node.this, exp.Literal) or not node.this.is_string:
            refuse("a time is written TIMESTAMP '2026-01-31 12:00:00'", position(node))
        return self._as_time(Bound("text", values.nothing, node, constant=node.this.name))

    def _as_time(self, bound: Bound) -> Bound:
        """A time of a text in quotes. Raises BadRequest."""
        found = microseconds(bound.constant)
        if found is None:
            refuse(
                f"{bound.constant!r:.60} is no time: write 2026-01-31, 2026-01-31T12:00:00 or "
                "2026-01-31T12:00:00+01:00",
                position(bound.node),
            )
        return Bound("time", values.constant(found), bound.node, constant=found)

    def _negative(self, node: Expr) -> Bound:
        inner = self._number(node.this)
        if type(inner.constant) in (int, float):
            return Bound("number", values.constant(-inner.constant), node, constant=-inner.constant)
        return Bound("number", values.computed(np.subtract, values.constant(0), inner.run), node)

    def _number(self, node: Expr) -> Bound:
        bound = self.bound(node)
        if bound.kind not in ("number", "null"):
            refuse(f"{bound.said}, a number must stand here", position(node))
        return bound

    def _inner(self, node: Expr) -> Bound:
        return self.bound(node.this)

    def _not(self, node: Expr) -> Bound:
        return Bound("bool", values.negation(_condition(self.bound(node.this)).run), node)

    def _is(self, node: Expr) -> Bound:
        inner, wanted = self.bound(node.this), node.expression
        if isinstance(wanted, exp.Null):
            if inner.constant is not None:
                return Bound("bool", self._all(False), node)
            return Bound("bool", values.is_null(inner.run), node)
        if not isinstance(wanted, exp.Boolean):
            refuse("IS takes NULL, TRUE, FALSE or [NOT] DISTINCT FROM", position(wanted))
        return Bound("bool", values.is_truth(_condition(inner).run, bool(wanted.this)), node)

    def _comparison(self, node: Expr) -> Bound:
        """Of two values of one type; or of a text with ANY(list)."""
        sides = _sides(node)
        for side, other in (sides, sides[::-1]):
            if isinstance(side, exp.Any):
                return self._held(self.bound(side.this), self.bound(other), node)
        left, right = map(self.bound, sides)
        ordered = node.key not in ("eq", "neq")
        run = values.compared(values.COMPARISONS[node.key], *self._alike(left, right, node, ordered))
        return Bound("bool", run, node)

    def _alike(self, left: Bound, right: Bound, node: Expr, ordered: bool) -> tuple[Run, Run]:
        """Both sides as values that compare as they do. Raises BadRequest where they cannot be compared."""
        if {left.kind, right.kind} == {"time", "text"}:  # SQL takes a text in quotes for a time there
            left, right = (
                self._as_time(side) if side.kind == "text" and side.constant is not None else side
                for side in (left, right)
            )
        kinds = {left.kind, right.kind} - {"null"}
        if len(kinds) > 1 or "list" in kinds:
            hint = ": write 'x' = ANY(list)" if "list" in kinds else ""
            refuse(f"{left.said} and {right.said}: they cannot be compared{hint}", position(node))
        if ordered and kinds == {"bool"}:
            refuse("conditions have no order: compare them with = or <>", position(node))
        return _text_runs(left, right) if kinds == {"text"} else (left.run, right.run)

    def _in(self, node: Expr) -> Bound:
        """Constants of the operand's type by lookup, all others as comparisons with OR between them."""
        inner = self.bound(node.this)
        members = [self.bound(member) for member in node.expressions]
        if inner.kind == "time":
            members = [
                self._as_time(m) if m.kind == "text" and m.constant is not None else m for m in members
            ]
        listed = [m.constant for m in members if m.kind == inner.kind and m.constant is not None]
        others = [m for m in members if not (m.kind == inner.kind and m.constant is not None)]
        if inner.kind == "text" and (inner.column is None):
            listed, others = [], members
        runs = [
            values.compared(values.COMPARISONS["eq"], *self._alike(inner, m, node, False)) for m in others
        ]
        if listed and inner.kind == "text" and inner.column is not None:
            codes = [texts.code_of(inner.column.texts, text) for text in listed]
            table = np.zeros(max(1, texts.text_count(inner.column.texts)), np.bool_)
            table[[code for code in codes if code is not None]] = True
            runs.insert(0, values.looked_up(inner.run, table))
        elif listed:
            runs.insert(0, values.among(inner.run, listed))
        whole = runs[0]
        for run in runs[1:]:
            whole = values.disjunction(whole, run)
        return Bound("bool", whole, node)

    def _between(self, node: Expr) -> Bound:
        inner = self.bound(node.this)
        ends = [(self.bound(node.args[name]), compare) for name, compare in (("low", "gte"), ("high", "lte"))]
        low, high = (
            values.compared(values.COMPARISONS[compare], *self._alike(inner, end, node, True))
            for end, compare in ends
        )
        return Bound("bool", values.conjunction(low, high), node)

    def _escaped(self, node: Expr) -> Bound:
        escape = node.expression
        if not isinstance(escape, exp.Literal) or not escape.is_string or len(escape.name) != 1:
            refuse("ESCAPE takes one character in quotes", position(node))
        if not isinstance(node.this, exp.Like | exp.ILike):
            refuse("ESCAPE stands behind LIKE or ILIKE alone", position(node))
        return self._like(node.this, escape.name)

    def _like(self, node: Expr, escape: str | None = None) -> Bound:
        inner, pattern = self.bound(node.this), self.bound(node.expression)
        for side in (inner, pattern):
            if side.kind not in ("text", "null"):
                refuse(f"{side.said}, LIKE compares texts", position(side.node))
        if "null" in (inner.kind, pattern.kind):
            return Bound("null", values.nothing, node)
        if pattern.constant is None or len(pattern.constant) > texts.MAX_PATTERN:
            refuse(f"a pattern is a text in quotes of at most {texts.MAX_PATTERN} characters", position(node))
        run = self._matches(inner, pattern.constant, escape, node)
        return Bound("bool", values.negation(run) if node.args.get("negate") else run, node)

    def _matches(self, inner: Bound, pattern: str, escape: str | None, node: Expr) -> Run:
        fold = isinstance(node, exp.ILike)
        try:
            test = texts.like(pattern, escape, fold)
        except ValueError as error:
            refuse(str(error), position(node.expression))
        if inner.column is None:
            return self._all(test(inner.constant))
        prefix = None if fold else texts.plain_prefix(pattern, escape)
        if prefix is not None:
            first, last = texts.prefix_codes(inner.column.texts, prefix)
            return values.compared(
                lambda codes, _: (codes >= first) & (codes < last), inner.run, values.constant(0)
            )
        _check_scan(inner, "this pattern needs to look at each; such as 'abc%' it may be")
        table = texts.matching(inner.column.texts, test)
        return values.looked_up(inner.run, table)

    def _contains(self, node: Expr) -> Bound:
        return self._held(self.bound(node.this), self.bound(node.expression), node)

    def _held(self, held_by: Bound, wanted: Bound, node: Expr) -> Bound:
        """Whether a list has a text. Raises BadRequest."""
        if held_by.kind != "list" or held_by.column is None:
            refuse(f"{held_by.said}, a list must stand here", position(held_by.node))
        if wanted.kind == "null":
            return Bound("null", values.nothing, node)
        if wanted.kind != "text" or wanted.constant is None:
            refuse(f"{wanted.said}: what a list is asked for is a text in quotes", position(wanted.node))
        code = texts.code_of(held_by.column.texts, wanted.constant)
        return Bound("bool", values.holds(held_by.column, code), node)

    _others: Mapping[type[Expr], Callable[..., Bound]] = {
        exp.Column: _name,
        exp.Literal: _literal,
        exp.Boolean: _truth,
        exp.Null: _null,
        exp.Cast: _time,
        exp.Neg: _negative,
        exp.Paren: _inner,
        exp.Not: _not,
        exp.Is: _is,
        exp.In: _in,
        exp.Between: _between,
        exp.Escape: _escaped,
        exp.Like: _like,
        exp.ILike: _like,
        exp.ArrayContains: _contains,
    }


def _sides(node: Expr) -> list[Expr]:
    return [node.args["this"], node.args["expression"]]


def _check_scan(bound: Bound, why: str) -> None:
    count = 0 if bound.column is None else texts.text_count(bound.column.texts)
    if count > texts.MAX_SCANNED:
        refuse(
            f"{bound.node.sql()!r:.60} has {count} different texts, more than {texts.MAX_SCANNED}: {why}",
            position(bound.node),
        )


def _text_runs(left: Bound, right: Bound) -> tuple[Run, Run]:
    """Two texts as numbers in one order."""
    if left.column is not None and right.column is not None:
        if left.column is right.column:
            return left.run, right.run
        for side in (left, right):
            _check_scan(side, "compare it with texts in quotes")
        first, second = texts.common_numbers(left.column.texts, right.column.texts)
        return values.mapped(left.run, first), values.mapped(right.run, second)
    sides: Sequence[Bound] = (left, right)
    column = next((side.column for side in sides if side.column is not None), None)
    if column is None:  # texts in quotes, or NULL
        known = sorted(side.constant.encode() for side in sides if side.constant is not None)
        runs = [
            side.run if side.constant is None else values.constant(known.index(side.constant.encode()))
            for side in sides
        ]
        return runs[0], runs[1]
    return _beside(left, column), _beside(right, column)


def _beside(side: Bound, column: AttributeColumn) -> Run:
    """A side of a comparison with a column's texts: text n is 2n + 1, a text between is even."""
    if side.constant is None:
        run = side.run
        if side.column is None:
            return run

        def odd(first: int, last: int) -> values.Cells:
            codes, known = run(first, last)
            return values.Cells(2 * codes + 1, known)

        return odd
    place = texts.first_not_below(column.texts, side.constant.encode())
    there = texts.code_of(column.texts, side.constant) is not None
    return values.constant(2 * place + there)
