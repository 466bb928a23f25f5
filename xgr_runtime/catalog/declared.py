"""What catalog.json or flags say of a source: how its SIDs are spelt and what its columns are called.

An integer in a source may be a token id or the code of a level; nothing in it says which. Read as token ids,
codes give a catalog that serves wrong items without a word, so integers count as ids where that is declared,
or where they cannot be codes (see `check_ids`).
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from xgr_runtime.catalog.columns import Columns
    from xgr_runtime.catalog.vocabulary import Vocabulary

TOKEN_IDS = "token_ids"
DECLARE = (
    'declare what they are: "sid_format" in catalog.json or --sid-format, such as '
    f"'<a_{{0}}><b_{{1}}><c_{{2}}>' for codes, or {TOKEN_IDS} if they are token ids"
)
_TOKEN = re.compile(r"<[^<>\s]+>|[^<>\s]+")
_MOST_CODES = 1 << 22  # of a level whose codes are spelt by a table
_WHOLE = re.compile(r"[0-9]{1,18}")  # a number that text holds
CODE = re.compile(r"\{(\d+)\}")


class Names(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the columns of a source are called."""

    item: str = "item"
    sid: str = "sid"
    title: str = "title"
    popularity: str = "popularity"
    attributes: str = "attributes"


class Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`sid_format`: tokens of a SID, level by level, with {0}, {1}, ... for its codes; or "token_ids".

    `sid_packed`: how many codes each level has, where a SID is one number, the first level its largest part.
    """

    sid_format: str = ""
    sid_packed: tuple[int, ...] = ()
    columns: Names = Names()

    def problem(self) -> str | None:
        """What cannot be meant, None if all is well."""
        if self.sid_format and self.sid_format != TOKEN_IDS:
            codes = [int(code) for code in CODE.findall(self.sid_format)]
            if codes != list(range(len(codes))) or not codes:
                return (
                    f"sid_format {self.sid_format!r:.80} must hold {{0}}, {{1}}, ... once each, in this order"
                )
            levels = [CODE.sub("{}", piece) for piece in split_sid(self.sid_format) if CODE.search(piece)]
            if 1 < len(set(levels)) < len(levels):
                return f"sid_format {self.sid_format!r:.80} spells two levels alike and others not"
            if self.sid_packed and len(self.sid_packed) != len(codes):
                return f"sid_packed names {len(self.sid_packed)} levels and sid_format {len(codes)}"
        if any(size < 1 for size in self.sid_packed):
            return f"sid_packed is {list(self.sid_packed)}: each level has at least one code"
        if len(set(msgspec.structs.astuple(self.columns))) < len(Names.__struct_fields__):
            return "columns gives two of them one name"
        return None


def declared(fields: Mapping[str, Any], path: Path, flags: Declared | None = None) -> Declared:
    """What catalog.json says; where `flags` say something, that counts. Raises CatalogError."""
    named = {name: fields[name] for name in Declared.__struct_fields__ if name in fields}
    try:
        found = msgspec.convert(named, Declared)
    except msgspec.ValidationError as error:
        raise CatalogError(f"{path}: {error}: correct it") from error
    if flags is not None:
        changes = {name: getattr(flags, name) for name in Declared.__struct_fields__ if getattr(flags, name)}
        if flags.columns == Names():
            changes.pop("columns")
        found = msgspec.structs.replace(found, **changes)
    if problem := found.problem():
        raise CatalogError(f"{path if flags is None else 'the declaration'}: {problem}: correct it")
    return found


def split_sid(text: str) -> list[str]:
    """The tokens of a SID that is written as one text, with or without blanks between them."""
    return _TOKEN.findall(text)


def spell(columns: Columns, form: Declared) -> Columns:
    """The same rows with each SID as token strings or ids. Raises CatalogError naming the row."""
    if isinstance(columns.tokens, np.ndarray):
        if _spell_numbers(columns, form):
            return columns
        columns = columns.lists()
    if form.sid_format or form.sid_packed:
        columns.tokens = [int(t) if type(t) is str and _WHOLE.fullmatch(t) else t for t in columns.tokens]
    if form.sid_packed:
        _unpack(columns, form.sid_packed)
    if not form.sid_format or form.sid_format == TOKEN_IDS:
        return columns
    pieces = split_sid(form.sid_format)
    spelt: dict[tuple[int, ...], list[str]] = {}
    tokens: list[Any] = []
    for row, codes in _rows(columns):
        if not set(map(type, codes)) <= {int}:  # spelt as tokens already
            tokens.append(codes)
            continue
        known = spelt.get(codes)
        if known is None:
            known = spelt[codes] = _spelt(columns, row, codes, pieces)
        tokens.append(known)
    columns.lengths = [*map(len, tokens)]
    columns.tokens = [*chain.from_iterable(tokens)]
    return columns


def _spell_numbers(columns: Columns, form: Declared) -> bool:
    """`spell` of an array of numbers, level by level. False: not all rows are alike, look at each."""
    tokens, lengths = columns.tokens, np.asarray(columns.lengths)
    assert isinstance(tokens, np.ndarray)
    sizes = form.sid_packed
    if sizes and (lengths == 1).all():
        codes, left = np.empty((len(tokens), len(sizes)), np.int64), tokens
        for level in reversed(range(len(sizes))):
            left, codes[:, level] = np.divmod(left, sizes[level])
        if left.any():
            return False
        tokens, lengths = codes.reshape(-1), np.full(len(codes), len(sizes))
    elif sizes:
        return False
    if form.sid_format and form.sid_format != TOKEN_IDS:
        pieces = split_sid(form.sid_format)
        alike = all(len(CODE.findall(piece)) == 1 for piece in pieces) and (lengths == len(pieces)).all()
        if not alike or tokens.min() < 0 or tokens.max() >= _MOST_CODES:
            return False
        columns.words, tokens = _words(tokens.reshape(-1, len(pieces)), pieces)
    columns.tokens, columns.lengths = tokens, lengths
    return True


def _words(codes: NDArray[np.int64], pieces: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct tokens of codes [N, levels], and the number of each SID's among them [N * levels]."""
    words: list[str] = []
    numbers = np.empty_like(codes)
    for level, piece in enumerate(pieces):
        place = np.zeros(int(codes[:, level].max()) + 1, np.int64)
        place[codes[:, level]] = 1
        used = np.flatnonzero(place)
        place[used] = np.arange(len(words), len(words) + len(used))
        words += [CODE.sub(str(code), piece) for code in used.tolist()]
        numbers[:, level] = place[codes[:, level]]
    return words, numbers.reshape(-1)


def has_numbers(columns: Columns) -> bool:
    """Whether some tokens were written as numbers, not as texts."""
    if isinstance(columns.tokens, np.ndarray):
        return columns.words is None
    return any(type(token) is int or _WHOLE.fullmatch(token) for token in set(columns.tokens))


def check_ids(sids: NDArray[np.int32], form: Declared, vocabulary: Vocabulary) -> None:
    """Raises CatalogError where integers were taken as token ids and may well be codes. sids [N, depth]."""
    if form.sid_format:
        return
    levels = [set(np.unique(sids[:, level]).tolist()) for level in range(sids.shape[1])]
    before: set[int] = set()
    for level, ids in enumerate(levels):
        if shared := ids & before:
            raise CatalogError(
                f"the SIDs are integers, and {min(shared)} stands at level {level} and one before, as codes "
                f"do and token ids seldom: {DECLARE}"
            )
        before |= ids
    for token in sorted(before):
        if (word := vocabulary.word(token)) is not None:
            raise CatalogError(
                f"the SIDs are integers, and as a token id {token} would be {word!r:.40}, a piece of text: "
                f"{DECLARE}"
            )


def _rows(columns: Columns) -> Iterable[tuple[int, tuple[Any, ...]]]:
    at = 0
    for row, length in enumerate(columns.lengths):
        yield row, tuple(columns.tokens[at : at + length])
        at += length


def _unpack(columns: Columns, sizes: Sequence[int]) -> None:
    """Each number becomes the codes of its levels."""
    tokens: list[Any] = []
    lengths: list[int] = []
    for row, sid in _rows(columns):
        if len(sid) != 1 or type(sid[0]) is not int:
            tokens += sid
            lengths.append(len(sid))
            continue
        codes = unpacked(sid[0], sizes)
        if codes is None:
            raise CatalogError(
                f"{columns.place(row)}, item {columns.items[row]!r:.80}: the SID {sid[0]} is not within "
                f"sid_packed {list(sizes)}: correct one of the two"
            )
        tokens += codes
        lengths.append(len(sizes))
    columns.tokens, columns.lengths = tokens, lengths


def unpacked(number: int, sizes: Sequence[int]) -> list[int] | None:
    """The code of each level of a SID that is one number, the first its largest part; None beyond them."""
    codes = []
    for size in reversed(sizes):
        number, code = divmod(number, size)
        codes.append(code)
    return None if number else codes[::-1]


def _spelt(columns: Columns, row: int, codes: Sequence[int], pieces: Sequence[str]) -> list[str]:
    needed = sum(len(CODE.findall(piece)) for piece in pieces)
    if len(codes) != needed or min(codes) < 0:
        raise CatalogError(
            f"{columns.place(row)}, item {columns.items[row]!r:.80}: the SID has the codes {list(codes)}, "
            f"sid_format has {needed} of them: correct one of the two"
        )
    return [CODE.sub(lambda found: str(codes[int(found[1])]), piece) for piece in pieces]
