"""One batch of changes, as journals keep it and workers get it: whole items, resolved against one version."""

from typing import Annotated

import msgspec
from msgspec import Meta

MOST_CHANGES = 1 << 22
"""Of one batch."""
LONGEST_ID = 4096  # characters
LONGEST_TITLE = 1 << 20

Id = Annotated[str, Meta(max_length=LONGEST_ID)]
Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
MOST_POPULARITY = 1e300
"""Above and below zero."""

Popularity = Annotated[float, Meta(ge=-MOST_POPULARITY, le=MOST_POPULARITY)]


class ItemRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One item, whole. sid: token ids; attributes: canonical JSON of an object, empty for none."""

    id: Id
    sid: Annotated[tuple[Token, ...], Meta(min_length=1, max_length=64)]
    title: Annotated[str, Meta(max_length=LONGEST_TITLE)] = ""
    popularity: Popularity | None = None  # without one it comes last on its SID
    attributes: Annotated[bytes, Meta(max_length=1 << 24)] = b""


class EditBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Atomic. An item is put or removed once, and hidden or shown once; who puts an item replaces it.

    put: new items and whole replacements. rank: a popularity each. compact: drops what is removed and lays
    everything out as a built catalog does, without any other change.
    """

    put: Annotated[tuple[ItemRecord, ...], Meta(max_length=MOST_CHANGES)] = ()
    remove: Annotated[tuple[Id, ...], Meta(max_length=MOST_CHANGES)] = ()
    hide: Annotated[tuple[Id, ...], Meta(max_length=MOST_CHANGES)] = ()
    show: Annotated[tuple[Id, ...], Meta(max_length=MOST_CHANGES)] = ()
    rank: Annotated[tuple[tuple[Id, Popularity], ...], Meta(max_length=MOST_CHANGES)] = ()
    compact: bool = False
