"""Bodies and queries of the catalog's routes."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from router.http.schema import MOST_CONDITION, ItemId

MOST_EDITS = 1 << 17  # entries of one list of a JSON body; lines have no such limit
MOST_LINES = 1 << 22
KeyText = Annotated[str, Meta(max_length=256)]
VersionText = Annotated[str, Meta(max_length=64)]
FilterName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}\Z")]

Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
SidTokens = Annotated[list[int | str], Meta(max_length=64)]
SidText = Annotated[str, Meta(max_length=4096)]
_WAIT = Meta(description="Answer once all workers have it, instead of once it is kept.")
_KEY = Meta(description="Of this change: sent again, it gets its first answer and changes nothing.")
_EXPECTED = Meta(description="That has to be current: 409 where another one is.")


class NewItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item to add."""

    item: ItemId
    sid: Annotated[SidTokens | SidText, Meta(description="Token ids or texts, or all of them as one text.")]
    title: str | None = None
    popularity: Number | None = None
    attributes: dict[str, Any] | None = None


class UpdatedItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item that is there: what is left out stays; an attribute that is null is taken away."""

    item: ItemId
    sid: SidTokens | SidText | None = None
    title: str | None = None
    popularity: Number | None = None
    attributes: dict[str, Any] | None = None


Ids = Annotated[list[ItemId], Meta(max_length=MOST_EDITS)]


class EditItems(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One atomic batch. Unknown ids to remove, hide, show and rank are left out, and listed in the answer."""

    add: Annotated[list[NewItem], Meta(max_length=MOST_EDITS)] = []
    update: Annotated[list[UpdatedItem], Meta(max_length=MOST_EDITS)] = []
    remove: Ids = []
    hide: Ids = []
    show: Ids = []
    rank: Annotated[
        Annotated[dict[str, Number], Meta(max_length=MOST_EDITS)], Meta(description="Popularity by item id.")
    ] = {}
    key: Annotated[KeyText, _KEY] = ""
    version: Annotated[VersionText, _EXPECTED] = ""
    wait: Annotated[bool, _WAIT] = True


class EditLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of `application/x-ndjson`: one of these."""

    add: NewItem | None = None
    update: UpdatedItem | None = None
    remove: ItemId | None = None
    hide: ItemId | None = None
    show: ItemId | None = None
    rank: Annotated[dict[str, Number], Meta(min_length=1)] | None = None


class EditsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For lines, which have no other place for it."""

    key: Annotated[KeyText, _KEY] = ""
    version: Annotated[VersionText, _EXPECTED] = ""
    wait: Annotated[bool, _WAIT] = True


class PushFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that lies below the store's folder, such as `new.xgr`: built, or a source."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    wait: Annotated[bool, _WAIT] = True


class PushQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of an upload."""

    wait: Annotated[bool, _WAIT] = True
    name: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9_.-]{0,128}\Z", description="Of the file, for the history.")
    ] = ""


class RollbackTo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To which version; without, the one before."""

    version: VersionText | None = None
    wait: Annotated[bool, _WAIT] = True


class NamedCondition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a filter's name stands for."""

    where: Annotated[str, Meta(min_length=1, max_length=MOST_CONDITION)]


class HistoryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of it."""

    most: Annotated[int, Meta(ge=1, le=10_000)] = 100
