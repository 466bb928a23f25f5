"""From words to a tree, by sqlglot's parser; and what of its trees a condition may consist of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlglot import expressions as exp
from sqlglot.errors import ErrorLevel, ParseError
from sqlglot.parser import Parser

from xgr_runtime.catalog.where.words import read_words, refuse

if TYPE_CHECKING:
    from sqlglot import Expr, Token

_TWO = frozenset({"this", "expression"})
TAKEN: dict[type[Expr], frozenset[str]] = {
    **dict.fromkeys([exp.And, exp.Or, exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE], _TWO),
    **dict.fromkeys([exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Is], _TWO),
    **dict.fromkeys([exp.NullSafeEQ, exp.NullSafeNEQ, exp.Escape, exp.ArrayContains], _TWO),
    **dict.fromkeys([exp.Like, exp.ILike], _TWO | {"negate"}),
    **dict.fromkeys([exp.Not, exp.Neg, exp.Paren, exp.Any, exp.Column, exp.Boolean], frozenset({"this"})),
    exp.In: frozenset({"this", "expressions"}),
    exp.Between: frozenset({"this", "low", "high"}),
    exp.Literal: frozenset({"this", "is_string"}),
    exp.Identifier: frozenset({"this", "quoted"}),
    exp.Null: frozenset(),
    exp.Cast: frozenset({"this", "to"}),
    exp.DataType: frozenset({"this", "nested"}),
}
"""Nodes that mean something here, and which of their parts do: one that has another part is refused."""


def read_tree(text: str) -> Expr:
    """The one condition that the text holds. Raises BadRequest naming a position; evaluates nothing."""
    words = read_words(text)
    try:
        trees = Parser(error_level=ErrorLevel.IMMEDIATE).parse_into(exp.Condition, words, text)
        if len(trees) != 1 or trees[0] is None:
            refuse("it is not one condition")
        for node in trees[0].walk():
            _check_node(node)
        return trees[0]
    except ParseError as error:
        refuse("this is no condition: something is missing here or before it", _place(error, words, text))
    except RecursionError:
        refuse("it is nested too deeply: write it flatter")


def position(node: Expr) -> int:
    """Where a part of the expression begins, as far as its first name or value tells; from 0."""
    starts = [part.meta["start"] for part in node.walk() if "start" in part.meta]
    return min(starts, default=0)


def _check_node(node: Expr) -> None:
    taken = TAKEN.get(type(node))
    if taken is None:
        refuse(f"{_words(node)} is not part of a condition", position(node))
    others = [part for part, value in node.args.items() if value and part not in taken]
    if others:
        refuse(f"{_words(node)} has more than a condition takes ({others[0]})", position(node))
    if isinstance(node, exp.In) and not node.expressions:
        refuse("IN takes a list in parentheses, such as brand IN ('a', 'b')", position(node))
    if isinstance(node, exp.Any) and not isinstance(node.parent, exp.EQ):
        refuse("ANY takes =, such as 'x' = ANY(tags)", position(node))


def _words(node: Expr) -> str:
    return repr(node.sql())[:60]


def _place(error: ParseError, words: list[Token], text: str) -> int:
    found: dict[str, Any] = error.errors[0] if error.errors else {}
    line, column = found.get("line"), found.get("col")
    ends = [word for word in words if word.line == line and word.col == column]
    return ends[0].start if ends else len(text.rstrip()) - 1
