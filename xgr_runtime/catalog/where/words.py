"""The words of an expression, checked one by one before a parser sees them.

A general parser of SQL takes whole statements, casts and hundreds of functions, and some of them nested cost
it exponential time. What gets past this file is short, rather flat, and made of a condition's words alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

from sqlglot import Tokenizer, TokenType
from sqlglot.errors import SqlglotError

from xgr_runtime.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlglot import Token

PARAM = "filters.where"
MAX_CHARACTERS = 8_192
MAX_WORDS = 2_048
MAX_OPERATIONS = 128
MAX_NESTING = 24
"""Parentheses within each other. Python's stack holds about three times as many."""

FUNCTIONS = ("array_contains",)

_OPERATIONS = {
    TokenType.AND,
    TokenType.OR,
    TokenType.NOT,
    TokenType.EQ,
    TokenType.NEQ,
    TokenType.LT,
    TokenType.LTE,
    TokenType.GT,
    TokenType.GTE,
    TokenType.IN,
    TokenType.BETWEEN,
    TokenType.LIKE,
    TokenType.ILIKE,
    TokenType.IS,
    TokenType.PLUS,
    TokenType.DASH,
    TokenType.STAR,
    TokenType.SLASH,
    TokenType.MOD,
    TokenType.ANY,
}
_OTHERS = {
    TokenType.VAR,
    TokenType.IDENTIFIER,
    TokenType.STRING,
    TokenType.NUMBER,
    TokenType.L_PAREN,
    TokenType.R_PAREN,
    TokenType.COMMA,
    TokenType.NULL,
    TokenType.TRUE,
    TokenType.FALSE,
    TokenType.TIMESTAMP,
    TokenType.DATE,
    TokenType.ESCAPE,
    TokenType.DISTINCT,
    TokenType.FROM,
}
_NUMBER = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_NAME = re.compile(r"[^\W\d]\w*")


def refuse(message: str, position: int | None = None) -> NoReturn:
    """Raises BadRequest. position: of the character it is about, from 0."""
    where = "" if position is None else f" at character {position + 1}"
    raise BadRequest(f"{PARAM}{where}: {message}", PARAM)


def read_words(text: str) -> list[Token]:
    """The words of an expression, each of them one that a condition may have. Raises BadRequest."""
    if len(text) > MAX_CHARACTERS:
        refuse(f"it has {len(text)} characters, {MAX_CHARACTERS} are the most: shorten it")
    wrong = next((at for at, letter in enumerate(text) if _unprintable(letter)), None)
    if wrong is not None:
        refuse(f"{text[wrong]!r} is no character of an expression: take it out", wrong)
    if not text.strip():
        refuse("it is empty: write a condition, or leave the field out")
    try:
        words: list[Token] = Tokenizer().tokenize(text)
    except SqlglotError:
        refuse("a quotation mark or a comment is not closed: close it", _unclosed(text))
    if not words:
        refuse("it holds a comment alone: write a condition, or leave the field out")
    if len(words) > MAX_WORDS:
        refuse(f"it has {len(words)} words, {MAX_WORDS} are the most: shorten it", words[MAX_WORDS].start)
    _check_each(words)
    _check_nesting(words)
    operations = [word for word in words if word.token_type in _OPERATIONS]
    if len(operations) > MAX_OPERATIONS:
        refuse(
            f"it has {len(operations)} operators, {MAX_OPERATIONS} are the most: compare with lists, "
            "such as brand IN ('a', 'b')",
            operations[MAX_OPERATIONS].start,
        )
    return words


def conjuncts(text: str) -> list[str]:
    """A, B, ... of a text `(A) AND (B) ...`; nothing of any other. Raises as `read_words`."""
    if not text.startswith("("):
        return []
    parts: list[str] = []
    depth, start = 0, 0
    may_begin = True
    for word in read_words(text):
        kind = word.token_type
        if depth:
            depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(kind, 0)
            if not depth:
                parts.append(text[start : word.start])
        elif may_begin and kind == TokenType.L_PAREN:
            depth, start, may_begin = 1, word.end + 1, False
        elif not may_begin and kind == TokenType.AND:
            may_begin = True
        else:
            return []
    return parts if len(parts) > 1 and not may_begin else []


def _unprintable(letter: str) -> bool:
    return (letter < " " and letter not in "\t\r\n") or letter == "\x7f" or "\ud800" <= letter <= "\udfff"


def _unclosed(text: str) -> int | None:
    """Where the quotation mark or comment begins that nothing closes, as far as a scan can tell."""
    at = 0
    while found := re.compile(r"'|\"|--|/\*").search(text, at):
        end = {"'": "'", '"': '"', "--": "\n", "/*": "*/"}[found[0]]
        closed = text.find(end, found.end())
        if closed < 0:
            return None if found[0] == "--" else found.start()
        at = closed + len(end)
    return None


def _check_each(words: Sequence[Token]) -> None:
    for word, before, after in zip(words, [None, *words], [*words[1:], None], strict=False):
        kind = word.token_type
        if word.comments:
            refuse("comments are not taken: take them out", word.start)
        if kind not in _OPERATIONS and kind not in _OTHERS:
            _refuse_word(word)
        follows = None if after is None else after.token_type
        if kind == TokenType.VAR and not _NAME.fullmatch(word.text):
            refuse(f"{word.text!r:.40} is no name: names of other letters stand in double quotes", word.start)
        if kind == TokenType.IDENTIFIER and not word.text:
            refuse("a name is empty", word.start)
        if (
            kind in (TokenType.VAR, TokenType.IDENTIFIER)
            and follows == TokenType.L_PAREN
            and (kind != TokenType.VAR or word.text.lower() not in FUNCTIONS)
        ):
            refuse(
                f"{word.text!r:.40} is no function here: there is {FUNCTIONS[0]}(list, 'text')", word.start
            )
        if kind in (TokenType.TIMESTAMP, TokenType.DATE) and follows != TokenType.STRING:
            refuse(
                f"{word.text} stands before a time in quotes, such as '2026-01-31'; a column of that name "
                f'is written "{word.text}"',
                word.start,
            )
        if kind == TokenType.ANY and follows != TokenType.L_PAREN:
            refuse("ANY stands before a list in parentheses, such as 'x' = ANY(tags)", word.start)
        if kind == TokenType.NUMBER and not _NUMBER.fullmatch(word.text):
            refuse(f"{word.text!r:.40} is no number", word.start)
        if kind in (TokenType.DISTINCT, TokenType.FROM) and not _after_is(words, word, before):
            refuse(f"{word.text} stands in IS [NOT] DISTINCT FROM alone", word.start)


def _after_is(words: Sequence[Token], word: Token, before: Token | None) -> bool:
    wanted = {
        TokenType.DISTINCT: (TokenType.IS, TokenType.NOT),
        TokenType.FROM: (TokenType.DISTINCT,),
    }[word.token_type]
    return before is not None and before.token_type in wanted


def _refuse_word(word: Token) -> NoReturn:
    if word.token_type == TokenType.SEMICOLON:
        refuse("one condition is taken, without a semicolon: take it out", word.start)
    hint = f'; a column of that name is written "{word.text:.40}"' if _NAME.fullmatch(word.text) else ""
    refuse(f"{word.text!r:.40} is not part of a condition{hint}", word.start)


def _check_nesting(words: Sequence[Token]) -> None:
    depth = 0
    for word in words:
        depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(word.token_type, 0)
        if depth > MAX_NESTING:
            refuse(f"more than {MAX_NESTING} parentheses are open: write it flatter", word.start)
        if depth < 0:
            refuse("this parenthesis closes nothing", word.start)
    if depth:
        refuse(f"{depth} parentheses are not closed: close them", words[-1].end)
