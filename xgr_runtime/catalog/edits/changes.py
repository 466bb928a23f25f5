"""What a batch means to one version of a catalog: checked, with slots in the place of ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xgr_runtime.catalog.items import encode_ids
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from xgr_runtime.catalog.edits.batch import EditBatch
    from xgr_runtime.catalog.snapshot import Catalog

    Int32 = NDArray[np.int32]


class Changes(NamedTuple):
    """Of one batch. New slots are those behind the catalog's, in the order of `put`."""

    ids: list[bytes]  # [P] of items that are put
    dead: Int32  # slots that are present no more: removed, or replaced
    hide: Int32  # slots, new ones among them
    show: Int32
    keep_hidden: Int32  # new slots of items that were hidden
    rank: Int32  # slots
    popularity: list[float]  # of each slot in `rank`


def changes_of(catalog: Catalog, batch: EditBatch) -> Changes:
    """Raises CatalogError naming an item that is named twice, or that the catalog does not hold."""
    _check_names(batch)
    ids = encode_ids([record.id for record in batch.put])
    new = {one: catalog.slots + at for at, one in enumerate(ids)}
    before = present_rows(catalog, [record.id for record in batch.put])
    was_hidden = before >= 0
    if catalog.visible is not None:
        was_hidden[was_hidden] = ~catalog.visible.holds(before[was_hidden])
    else:
        was_hidden[:] = False

    def slots(names: Sequence[str], what: str) -> Int32:
        rows = present_rows(catalog, names)
        if new:
            put = [new.get(one, -1) for one in encode_ids(names)]
            rows = np.where(np.array(put, np.int32) >= 0, put, rows).astype(np.int32)
        if (rows < 0).any():
            name = names[int(np.argmax(rows < 0))]
            raise CatalogError(
                f"{what} names the item {name!r:.80}, which the catalog does not hold: leave it out"
            )
        return rows

    return Changes(
        ids=ids,
        dead=np.concatenate([slots(batch.remove, "remove"), before[before >= 0]]),
        hide=slots(batch.hide, "hide"),
        show=slots(batch.show, "show"),
        keep_hidden=(catalog.slots + np.flatnonzero(was_hidden)).astype(np.int32),
        rank=slots([name for name, _ in batch.rank], "rank"),
        popularity=[popularity for _, popularity in batch.rank],
    )


def present_rows(catalog: Catalog, names: Sequence[str]) -> Int32:
    """Row of each item [N], -1 for those that are not there, or no more."""
    rows = catalog.item_rows(names)
    known = rows >= 0
    known[known] = catalog.present(rows[known])
    return np.where(known, rows, np.int32(-1))


class Contradiction(NamedTuple):
    """A name that a batch must not have there."""

    kind: str  # of the list
    at: int  # its place there
    other: str  # the list in which it is, too; the same: it is there twice


_AGAINST = {
    "update": ("add",),
    "remove": ("put", "add", "update"),
    "hide": ("remove", "show"),
    "show": ("remove",),
    "rank": ("remove",),
}
"""Each list, and those in which its names must not be."""


def contradiction(lists: Mapping[str, Sequence[str]], once: Collection[str]) -> Contradiction | None:
    """The first name that is in two lists that contradict each other, or twice in one of those of `once`."""
    sets = {kind: set(names) for kind, names in lists.items()}
    for kind, names in lists.items():
        if kind in once and len(sets[kind]) < len(names):
            seen: set[str] = set()
            at = next(at for at, name in enumerate(names) if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            return Contradiction(kind, at, kind)
        for other in _AGAINST.get(kind, ()):
            if both := sets[kind] & sets.get(other, set()):
                return Contradiction(kind, next(at for at, name in enumerate(names) if name in both), other)
    return None


def _check_names(batch: EditBatch) -> None:
    lists: dict[str, Sequence[str]] = {
        "put": [record.id for record in batch.put],
        "remove": batch.remove,
        "hide": batch.hide,
        "show": batch.show,
        "rank": [name for name, _ in batch.rank],
    }
    if found := contradiction(lists, lists):
        name = f"{lists[found.kind][found.at]!r:.80}"
        if found.kind == found.other:
            raise CatalogError(f"{found.kind} names the item {name} twice: name it once")
        raise CatalogError(f"{found.other} and {found.kind} name the item {name}: leave out one of the two")
