"""The columns that every source format is read into, and what a row may hold."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.catalog.declared import split_sid
from xgr_runtime.catalog.items import StringTable, TextSequence, pack_strings
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

PIECE = 1 << 17
"""Rows that readers give at once."""

EXPECTED = (
    'a row is {"item": "...", "sid": [...]} and optionally "title" (text), "popularity" (a number), '
    '"attributes" (an object; put further fields there); "columns" in catalog.json declares other names'
)


class Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One line of a JSONL source; the columns of a Parquet source are the same."""

    item: str | int
    sid: list[str | int] | str | int  # tokens; all of them as one text; codes as one number
    title: str | None = None
    popularity: float | None = None
    attributes: dict[str, Any] | None = None


@dataclass
class Columns:
    """Rows in source order. `place` says where row i stands, for messages ("line 7").

    SIDs lie flat, row after row: a million small lists would keep the garbage collector busy. A column may
    be in arrays already, where a source has it so: see `lists`.
    """

    items: Sequence[Any] | TextSequence
    tokens: Sequence[Any] | NDArray[np.int64]  # of all SIDs
    lengths: Sequence[int] | NDArray[np.int64]  # tokens per SID
    place: Callable[[int], str]
    titles: Sequence[str | None] | TextSequence | None = None
    popularity: Sequence[float | None] | NDArray[np.float64] | None = None  # an array has -inf for None
    attributes: Sequence[bytes] | StringTable | None = None  # canonical JSON
    words: Sequence[str] | None = None  # with it, `tokens` are an array of places in here

    def lists(self) -> Columns:
        """The same rows as lists of Python values."""
        tokens = _listed(self.tokens)
        popularity = _listed(self.popularity)
        if isinstance(self.popularity, np.ndarray):
            popularity = [None if value == -np.inf else value for value in popularity]
        attributes = self.attributes
        return Columns(
            _listed(self.items),
            tokens if self.words is None else [self.words[token] for token in tokens],
            _listed(self.lengths),
            self.place,
            [title or None for title in self.titles]
            if isinstance(self.titles, TextSequence)
            else self.titles,
            popularity,
            attributes.texts() if isinstance(attributes, StringTable) else attributes,
        )

    @classmethod
    def of_sids(
        cls,
        source: Path,
        items: Sequence[Any],
        sids: Iterable[Any],
        place: Callable[[int], str],
        titles: Sequence[str | None] | None = None,
        popularity: Sequence[float | None] | None = None,
        attributes: Sequence[bytes] | None = None,
    ) -> Columns:
        """Items and their SIDs, each a list of tokens, one text or one number. Raises CatalogError."""
        lists: list[list[Any]] = []
        for row, sid in enumerate(sids):
            if type(sid) not in _AS_LIST:
                raise CatalogError(
                    f"{source}: {place(row)}, item {items[row]!r:.80}: the SID is {sid!r:.80}: it must be a "
                    "list of token strings or ids, or all tokens as one text"
                )
            lists.append(_AS_LIST[type(sid)](sid))
        tokens = list(chain.from_iterable(lists))
        return cls(items, tokens, [*map(len, lists)], place, titles, popularity, attributes)


def _listed(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return values.tolist()
    return [*values] if isinstance(values, TextSequence) else values


_AS_LIST: dict[type, Callable[[Any], list[Any]]] = {list: list, str: split_sid, int: lambda sid: [sid]}


def placed(parts: Sequence[tuple[int, Callable[[int], str]]]) -> Callable[[int], str]:
    """Where a row of several pieces stands: each with its first row, and `place` for those in it."""
    starts = [first for first, _ in parts]

    def place(row: int) -> str:
        first, inner = parts[bisect_right(starts, row) - 1]
        return inner(row - first)

    return place


def joined(pieces: Iterable[Columns]) -> Columns:
    """The rows of all pieces, one piece after the other, as lists."""
    parts = [piece.lists() for piece in pieces]
    starts = accumulate((len(part.items) for part in parts), initial=0)
    place = placed([*zip(starts, (part.place for part in parts), strict=False)])

    def column(name: str) -> list[Any] | None:
        if all(getattr(part, name) is None for part in parts):
            return None
        absent = b"" if name == "attributes" else None
        cells = [getattr(part, name) or [absent] * len(part.items) for part in parts]
        return [*chain.from_iterable(cells)]

    return Columns(
        [*chain.from_iterable(part.items for part in parts)],
        [*chain.from_iterable(part.tokens for part in parts)],
        [*chain.from_iterable(part.lengths for part in parts)],
        place,
        titles=column("titles"),
        popularity=column("popularity"),
        attributes=column("attributes"),
    )


def decoded(source: Path, content: bytes) -> str:
    """Text of a file, without the mark that some programs put before it. Raises CatalogError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{source} is not UTF-8 text ({error}): convert it") from error


def canonical(attributes: dict[str, Any] | None) -> bytes:
    """Attributes as JSON with sorted keys and without absent values, so that every format agrees."""
    present = {key: value for key, value in (attributes or {}).items() if value is not None}
    if not present:
        return b""
    try:
        return _encode_sorted(present)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise CatalogError(
            f"attributes {present!r:.80} cannot be stored ({error}): use JSON values"
        ) from error


def canonical_table(objects: Sequence[dict[str, Any]]) -> StringTable:
    """`canonical` of each of some rows, in one go. Raises CatalogError."""
    present = [
        {key: value for key, value in row.items() if value is not None} if None in row.values() else row
        for row in objects
    ]
    try:
        lines = msgspec.json.Encoder(order="sorted").encode_lines(present)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return pack_strings([canonical(row) for row in objects])  # which names the one that cannot be
    letters = np.frombuffer(lines, np.uint8)
    ends = np.flatnonzero(letters == ord("\n"))  # those of texts are escaped
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    kept = np.ones(len(letters), np.bool_)
    kept[ends] = False
    lengths = ends - starts
    empty = starts[lengths == 2]  # "{}", which is stored as nothing
    kept[empty] = kept[empty + 1] = False
    offsets = np.zeros(len(objects) + 1, np.int64)
    np.cumsum(np.where(lengths == 2, 0, lengths), out=offsets[1:])
    return StringTable(letters[kept], offsets)


_encode_sorted = msgspec.json.Encoder(order="sorted").encode
