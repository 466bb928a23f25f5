"""Texts of a column: each distinct one is looked at once, never those of the rows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from xgr_runtime.catalog.items import StringTable

MAX_SCANNED = 1 << 17
"""Distinct texts that a pattern, or a comparison with another column, may have to be tried on."""

MAX_PATTERN = 256  # characters


def text_count(texts: StringTable) -> int:
    """How many distinct texts there are."""
    return max(0, len(texts.offsets) - 1)


def first_not_below(texts: StringTable, wanted: bytes) -> int:
    """The number of the first text that is not below `wanted`."""
    low, high = 0, text_count(texts)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if texts.get(middle) < wanted else (low, middle)
    return low


def code_of(texts: StringTable, text: str) -> int | None:
    """The number of that text; None if the column has it nowhere."""
    wanted = text.encode()
    code = first_not_below(texts, wanted)
    return code if code < text_count(texts) and texts.get(code) == wanted else None


def matching(texts: StringTable, matches: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Which texts match, [texts], one entry at least."""
    table = np.zeros(max(1, text_count(texts)), np.bool_)
    for code in range(text_count(texts)):
        table[code] = matches(texts.get(code).decode())
    return table


def like(pattern: str, escape: str | None, fold: bool) -> Callable[[str], bool]:
    """A test for LIKE, or with `fold` for ILIKE. Raises ValueError for an escape that escapes nothing.

    Each part between two `%` is taken where it is found first, and stays there, so nothing is tried twice.
    """
    parts = [""]
    letters = iter(pattern)
    for letter in letters:
        if letter == escape:
            letter = next(letters, "")
            if letter not in ("%", "_", escape):
                raise ValueError(f"{escape!r} escapes %, _ and itself: write it twice, or choose another one")
            parts[-1] += re.escape(letter)
        elif letter == "%":
            parts.append("")
        else:
            parts[-1] += "." if letter == "_" else re.escape(letter)
    first, *middle = parts
    whole = first + "".join(f"(?>.*?{part})" for part in middle[:-1] if part)
    whole += f".*{middle[-1]}" if middle else ""
    found = re.compile(whole, re.DOTALL | (re.IGNORECASE if fold else re.NOFLAG)).fullmatch
    return lambda text: found(text) is not None


def plain_prefix(pattern: str, escape: str | None) -> str | None:
    """`abc` of a pattern `abc%`; None for other patterns."""
    head = pattern[:-1]
    plain = pattern.endswith("%") and not any(letter in ("%", "_", escape) for letter in head)
    return head if plain and escape != "%" else None


def prefix_codes(texts: StringTable, prefix: str) -> tuple[int, int]:
    """The numbers [first, last) of the texts that begin so."""
    wanted = prefix.encode()
    # No UTF-8 has a byte 0xff, so this is above all that begin with the prefix.
    return first_not_below(texts, wanted), first_not_below(texts, wanted + b"\xff")


def common_numbers(left: StringTable, right: StringTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the texts of two columns, in one order for both; an entry at least for each."""
    numbers = {text: n for n, text in enumerate(sorted({*left.texts(), *right.texts()}))}
    first, second = ([numbers[text] for text in side.texts()] or [0] for side in (left, right))
    return np.array(first, np.int64), np.array(second, np.int64)
