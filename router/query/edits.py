"""From what a client wants changed to one batch for one version of a catalog: ids, tokens, whole items.

Whatever is wrong is said with the place where it stands, before anything is changed.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np

from router.catalogs.publishing import Prepared
from router.query.models import Model
from router.query.prompts import shorten
from xgr_runtime.catalog import Catalog, CatalogView
from xgr_runtime.catalog.attributes import AttributeField, misfit
from xgr_runtime.catalog.columns import canonical
from xgr_runtime.catalog.declared import split_sid
from xgr_runtime.catalog.edits.batch import (
    LONGEST_ID,
    LONGEST_TITLE,
    MOST_POPULARITY,
    EditBatch,
    ItemRecord,
)
from xgr_runtime.catalog.edits.changes import contradiction, present_rows
from xgr_runtime.catalog.vocabulary import Vocabulary
from xgr_runtime.errors import BadRequest, CatalogError

_encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True)
class AskedItem:
    """An item to add; or to update, where what is None stays as it is.

    sid: token ids or token texts, or all of them as one text. attributes: of an update those to change, None
    to take one away.
    """

    item: str
    sid: Sequence[int | str] | str | None = None
    title: str | None = None
    popularity: float | None = None
    attributes: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class AskedEdits:
    """What one call asks for. `places`: of each list the entries' places, where they are lines of a text."""

    add: Sequence[AskedItem] = ()
    update: Sequence[AskedItem] = ()
    remove: Sequence[str] = ()
    hide: Sequence[str] = ()
    show: Sequence[str] = ()
    rank: Sequence[tuple[str, float]] = ()
    places: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of what is asked for, however it was sent."""
        lists = (self.add, self.update, self.remove, self.hide, self.show, self.rank)
        return hashlib.blake2b(_encode(lists), digest_size=16).hexdigest()

    def place(self, kind: str, at: int) -> str:
        """Where an entry stands, for messages."""
        if kind in self.places:
            return f"line {self.places[kind][at]}: {kind}"
        return f"{kind}.{shorten(self.rank[at][0])}" if kind == "rank" else f"{kind}[{at}]"


class _Context(NamedTuple):
    catalog: Catalog
    vocabulary: Vocabulary
    levels: Sequence[tuple[int, int]]  # first and last token that SIDs have at each
    fields: Mapping[str, AttributeField]  # of its columns


def prepare(asked: AskedEdits, model: Model, view: CatalogView) -> Prepared:
    """The batch for this version. Raises BadRequest naming list, entry and what to change."""
    _check_names(asked)
    catalog = view.catalog
    levels = [(int(level[0]), int(level[-1])) for level in catalog.codebooks]
    fields = {field.name: field for field in catalog.fields}
    context = _Context(catalog, Vocabulary(model.vocab_size, model.tokenizer), levels, fields)
    put = [*_added(asked, context), *_updated(asked, context)]
    own = {record.id for record in put}
    unknown: dict[str, None] = {}  # in the order of the request

    def known(names: Sequence[str]) -> list[bool]:
        found = [
            row >= 0 or name in own for row, name in zip(present_rows(catalog, names), names, strict=True)
        ]
        unknown.update(dict.fromkeys(name for name, there in zip(names, found, strict=True) if not there))
        return found

    def resolved(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name, there in zip(names, known(names), strict=True) if there))

    ranked = known([name for name, _ in asked.rank])
    batch = EditBatch(
        put=tuple(put),
        remove=resolved(asked.remove),
        hide=resolved(asked.hide),
        show=resolved(asked.show),
        rank=tuple(one for one, there in zip(asked.rank, ranked, strict=True) if there),
    )
    return Prepared(batch, tuple(unknown))


def _check_names(asked: AskedEdits) -> None:
    """Names that are fit, and no item in two lists that contradict each other."""
    names = _names(asked)
    for kind, listed in names.items():
        for at, name in enumerate(listed):
            if not name or len(name) > LONGEST_ID or any("\ud800" <= letter <= "\udfff" for letter in name):
                what = f"an item id has 1 to {LONGEST_ID} characters, all whole ones"
                _refuse(asked, kind, at, what, "item")
    if found := contradiction(names, ("add", "update", "rank")):
        name = shorten(names[found.kind][found.at])
        what = f"{name} is in {found.other}, too: leave out one of the two"
        if found.kind == found.other:
            what = f"{name} is named twice: name it once"
        _refuse(asked, found.kind, found.at, what, "item")


def _names(asked: AskedEdits) -> dict[str, Sequence[str]]:
    return {
        "add": [one.item for one in asked.add],
        "update": [one.item for one in asked.update],
        "remove": asked.remove,
        "hide": asked.hide,
        "show": asked.show,
        "rank": [name for name, _ in asked.rank],
    }


def _added(asked: AskedEdits, context: _Context) -> Iterable[ItemRecord]:
    rows = present_rows(context.catalog, [one.item for one in asked.add])
    for at, (one, row) in enumerate(zip(asked.add, rows.tolist(), strict=True)):
        if row >= 0:
            _refuse(asked, "add", at, f"the catalog holds {shorten(one.item)} already: use update", "item")
        if one.sid is None:
            _refuse(asked, "add", at, "is missing: a new item needs one", "sid")
        sid = _sid(asked, "add", at, one.sid, context)
        yield _record(asked, "add", at, one, sid, ItemRecord(one.item, sid), one.attributes or {}, context)


def _updated(asked: AskedEdits, context: _Context) -> Iterable[ItemRecord]:
    """Each item whole: what is not asked for is that of the version."""
    catalog, names = context.catalog, [one.item for one in asked.update]
    rows = present_rows(catalog, names)
    if (rows < 0).any():
        at = int(np.argmax(rows < 0))
        _refuse(asked, "update", at, f"the catalog holds no item {shorten(names[at])}: use add", "item")
    titles, attributes = catalog.titles_at(rows), catalog.attributes_at(rows)
    popularity, sids = catalog.popularity(rows), catalog.sids[catalog.leaf_of_row[rows]]
    for at, one in enumerate(asked.update):
        sid = _sid(asked, "update", at, one.sid, context) if one.sid is not None else tuple(sids[at].tolist())
        number = float(popularity[at])
        before = ItemRecord(one.item, sid, titles[at], number if np.isfinite(number) else None)
        merged = {**attributes[at], **(one.attributes or {})}
        yield _record(asked, "update", at, one, sid, before, merged, context)


def _record(
    asked: AskedEdits,
    kind: str,
    at: int,
    one: AskedItem,
    sid: tuple[int, ...],
    before: ItemRecord,
    attributes: Mapping[str, Any],
    context: _Context,
) -> ItemRecord:
    if one.attributes and (what := misfit(context.fields, one.attributes)):
        _refuse(asked, kind, at, what, "attributes")
    title = before.title if one.title is None else one.title
    if len(title) > LONGEST_TITLE:
        _refuse(asked, kind, at, f"has {len(title)} characters, at most {LONGEST_TITLE}: shorten it", "title")
    popularity = before.popularity if one.popularity is None else one.popularity
    if popularity is not None and not -MOST_POPULARITY <= popularity <= MOST_POPULARITY:  # nor is NaN
        what = f"is {popularity}: a number within {MOST_POPULARITY:g}"
        _refuse(asked, kind, at, what, "popularity")
    try:
        text = canonical(dict(attributes))
    except CatalogError as error:
        _refuse(asked, kind, at, str(error), "attributes")
    return ItemRecord(one.item, sid, title, popularity, text)


def _sid(
    asked: AskedEdits, kind: str, at: int, given: Sequence[int | str] | str, context: _Context
) -> tuple[int, ...]:
    """Token ids of a SID, each at a level where it may stand."""
    tokens = split_sid(given) if isinstance(given, str) else given
    depth = context.catalog.depth
    if len(tokens) != depth:
        _refuse(asked, kind, at, f"has {len(tokens)} tokens, SIDs of this catalog have {depth}", "sid")
    try:
        sid = tuple(context.vocabulary.resolve(token) for token in tokens)
    except CatalogError as error:
        _refuse(asked, kind, at, str(error), "sid")
    for level, (token, (first, last)) in enumerate(zip(sid, context.levels, strict=True)):
        if first <= token <= last:
            continue
        others = [n for n, (low, high) in enumerate(context.levels) if low <= token <= high]
        by_number = type(tokens[level]) is int
        if others or by_number:
            hint = f"it is one of level {others[0]}" if others else "if it is right, send the token as text"
            what = f"the token {token} stands at level {level}, where this catalog has {first} to {last}"
            _refuse(asked, kind, at, f"{what}: {hint}", "sid")
    return sid


def _refuse(asked: AskedEdits, kind: str, at: int, what: str, part: str = "") -> NoReturn:
    where = asked.place(kind, at)
    dotted = f".{part}" if part and kind in ("add", "update") else ""
    raise BadRequest(f"{where}{dotted}: {what}", f"{kind}{dotted}")
