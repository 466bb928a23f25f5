"""Whether items that are put can be in a catalog. Every message names the item and what to change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.catalog.columns import canonical
from xgr_runtime.catalog.edits.batch import MOST_POPULARITY
from xgr_runtime.catalog.vocabulary import MAX_TOKEN
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xgr_runtime.catalog.edits.batch import EditBatch, ItemRecord
    from xgr_runtime.catalog.snapshot import Catalog

LONGEST = {"id": 4096, "title": 1 << 20, "attributes": 1 << 24}
"""Of an item: characters of id and title, bytes of attributes."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def check_records(catalog: Catalog, batch: EditBatch) -> None:
    """Everything but the types of attributes. Raises CatalogError."""
    fixed = {forced.token for forced in (*catalog.scoring.head, *catalog.scoring.tail)}
    first_sid = tuple(catalog.sids[0].tolist())
    for record in batch.put:
        problem = (
            _text_problem(record)
            or _sid_problem(catalog, record.sid)
            or (fixed and _forced_problem(record.sid, first_sid, fixed))
            or _popularity_problem(record.popularity)
            or _attributes_problem(record.attributes)
        )
        if problem:
            raise CatalogError(f"item {record.id!r:.80}: {problem}")
    for name, popularity in batch.rank:
        if problem := _popularity_problem(popularity):
            raise CatalogError(f"item {name!r:.80}: {problem}")


def _text_problem(record: ItemRecord) -> str | None:
    if not record.id:
        return "the id is empty: give every item one"
    for name, most in LONGEST.items():
        value: str | bytes = getattr(record, name)
        if len(value) > most:
            return f"its {name} is {len(value)} long, the limit is {most}: shorten it"
        try:
            _ = value.encode() if isinstance(value, str) else value
        except UnicodeEncodeError:
            return f"its {name} is not valid Unicode: correct it"
    return None


def _sid_problem(catalog: Catalog, sid: Sequence[int]) -> str | None:
    if len(sid) != catalog.depth:
        return f"its SID has {len(sid)} tokens, those of the catalog have {catalog.depth}: correct it"
    most = catalog.vocab_size_known or MAX_TOKEN + 1
    for level, token in enumerate(sid):
        if not 0 <= token < most:
            return f"token {token} of its SID is outside of the vocabulary of {most}: correct the SID"
        if catalog.scoring.level_tokens:
            first, last = catalog.scoring.level_tokens[level]
            if not first <= token <= last:
                return (
                    f"token {token} of its SID is none of level {level}, {first} to {last}: correct the SID"
                )
    return None


def _forced_problem(sid: Sequence[int], other: Sequence[int], fixed: set[int]) -> str | None:
    """Tokens around SIDs are not among those by which SIDs differ."""
    own = {token for pair in zip(sid, other, strict=True) if pair[0] != pair[1] for token in pair}
    if shared := own & fixed:
        return (
            f"its SID makes {min(shared)} one of the tokens by which SIDs differ, and head or tail of "
            "scoring hold it: correct the SID"
        )
    return None


def _popularity_problem(popularity: float | None) -> str | None:
    if popularity is None or (math.isfinite(popularity) and abs(popularity) <= MOST_POPULARITY):
        return None
    return f"its popularity is {popularity}: write a number within {MOST_POPULARITY:g} of 0"


def _attributes_problem(attributes: bytes) -> str | None:
    try:
        if not attributes or canonical(_decode(attributes)) == attributes:
            return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, CatalogError) as error:
        return f"its attributes cannot be read ({error!s:.200}): write a JSON object"
    return "its attributes are not in canonical form: sort the names, leave out blanks and absent values"
