"""The columns that every source format is read into, and what a row may hold."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

EXPECTED = (
    'a row is {"item": "...", "sid": [...]} and optionally "title" (text), "popularity" (a number), '
    '"attributes" (an object; put further fields there)'
)


class Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One line of a JSONL source; the columns of a Parquet source are the same."""

    item: str | int
    sid: list[str | int]
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
    def of_lists(
        cls, source: Path, items: Sequence[Any], sids: Sequence[Any], place: Callable[[int], str]
    ) -> Columns:
        """Items and their SIDs. Raises CatalogError where a SID is not a list."""
        for row, sid in enumerate(sids):
            if type(sid) is not list:
                raise CatalogError(
                    f"{source}: {place(row)}, item {items[row]!r}: the SID is {sid!r:.80}: "
                    "it must be a list of token strings or ids"
                )
        return cls(items, list(chain.from_iterable(sids)), [*map(len, sids)], place)


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
