"""The columns that every source format is read into, and what a row may hold."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.catalog.declared import split_sid
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

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

    SIDs lie flat, row after row: a million small lists would keep the garbage collector busy.
    """

    items: Sequence[Any]
    tokens: Sequence[Any]  # of all SIDs
    lengths: Sequence[int]  # tokens per SID
    place: Callable[[int], str]
    titles: Sequence[str | None] | None = None
    popularity: Sequence[float | None] | None = None
    attributes: Sequence[bytes] | None = None  # canonical JSON

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


_AS_LIST: dict[type, Callable[[Any], list[Any]]] = {list: list, str: split_sid, int: lambda sid: [sid]}


def joined(parts: Sequence[Columns], paths: Sequence[Path]) -> Columns:
    """The rows of all parts, one part after the other."""
    starts = [0, *accumulate(len(part.items) for part in parts)]

    def place(row: int) -> str:
        number = bisect_right(starts, row) - 1
        return f"{paths[number].name}, {parts[number].place(row - starts[number])}"

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


_encode_sorted = msgspec.json.Encoder(order="sorted").encode
