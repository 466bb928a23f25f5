"""A batch applied to a version of a catalog: the next version, beside which the old one stays as it is.

What does not change is shared between the two. Whoever applies the same batches to the same built catalog
gets the same versions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash

from xgr_kernels.trie import filter_of_bits
from xgr_runtime.catalog import bits
from xgr_runtime.catalog.added import Insertions
from xgr_runtime.catalog.edits.batch import EditBatch
from xgr_runtime.catalog.edits.changes import Changes, changes_of
from xgr_runtime.catalog.edits.checks import check_records
from xgr_runtime.catalog.edits.compact import compacted
from xgr_runtime.catalog.edits.later import Standing, stood, with_batch
from xgr_runtime.catalog.edits.leaves import Found, find, merged
from xgr_runtime.catalog.places import EditStep, LeafPlaces
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.views import CatalogView
from xgr_runtime.catalog.where import LiveRows
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from xgr_runtime.catalog.slots import Later

    Bits = NDArray[np.uint64]
    Int32 = NDArray[np.int32]
    Int64 = NDArray[np.int64]

_encode = msgspec.msgpack.Encoder().encode
_OF_COLUMNS = ("columns", "fields")
_OF_LEAVES = ("trie", "codebooks", "vocab_size_needed", "scored_levels", "relative_levels", "sid_tokens")
"""What a catalog works out when it is first asked for; a later version shares it unless a leaf came."""


def edited(view: CatalogView, batch: EditBatch) -> CatalogView:
    """The next version. Raises CatalogError that names an item and what to change; nothing happened then.

    Arrays by leaf are made anew where a leaf comes, the order on leaves where an item does. Conditions that
    are kept go over: see `KeptFilters.after`.
    """
    catalog = view.catalog
    if batch.compact:
        if batch != EditBatch(compact=True):
            raise CatalogError("a batch that compacts changes nothing else: send the changes by themselves")
        return compacted(view)
    check_records(catalog, batch)
    changes = changes_of(catalog, batch)
    later = with_batch(catalog, batch, changes)
    arrays, added, leaves, came = _leaves(catalog, batch)
    added = stood(added, leaves, changes.rank, Standing(catalog, later)).settled()
    arrays |= added.arrays()
    places = LeafPlaces(arrays["item_lo"], arrays["leaf_of_row"], added.whole_order(), added)
    new = np.arange(catalog.slots, places.slots, dtype=np.int32)
    touched = np.unique(np.concatenate([changes.dead, changes.hide, changes.show, new]))
    step = EditStep(touched, came)
    present = _present(catalog, changes)
    visible = _visible(catalog, places, changes, present, step)
    later = replace(later, added=added, present=present, visible=visible)
    version = _next_version(catalog.version, batch, touched, places.leaf_of_row[touched], came)
    return _following(view, version, arrays, later, step)


def _leaves(catalog: Catalog, batch: EditBatch) -> tuple[dict[str, NDArray[Any]], Insertions, Int64, Int32]:
    """All arrays, of which the trie has the new leaves; these between the others; the leaf of each item that
    is put [P], by its new number; the leaves, by their old numbers, in front of which new ones were put.
    """
    arrays, none = dict(catalog.arrays), np.empty(0, np.int32)
    added = catalog.later.added or Insertions.nothing(arrays)
    if not batch.put:
        return arrays, added, np.empty(0, np.int64), none
    sids, which = np.unique(np.array([r.sid for r in batch.put], np.int32), axis=0, return_inverse=True)
    found = find(catalog.trie, sids)
    new = found.level < catalog.depth
    leaves = found.leaf + np.cumsum(new) - new
    if new.any():
        lacking = Found(found.level[new], found.leaf[new], [n[new] for n in found.nodes])
        arrays |= merged(catalog, sids[new], lacking)
        added = added.with_leaves(lacking.leaf, sids[new])
    return arrays, added, leaves[which.reshape(-1)], found.leaf[new].astype(np.int32)


def _present(catalog: Catalog, changes: Changes) -> Bits | None:
    before, slots = catalog.later.present, catalog.slots + len(changes.ids)
    if before is None and not len(changes.dead):
        return None
    present = bits.filled(slots) if before is None else bits.grown(before, slots)
    if before is not None:
        bits.put(present, np.arange(catalog.slots, slots), True)
    bits.put(present, changes.dead, False)
    return present


def _visible(
    catalog: Catalog, places: LeafPlaces, changes: Changes, present: Bits | None, step: EditStep
) -> LiveRows | None:
    """What answers may list after the batch; `places` are those after it."""
    before, slots = catalog.visible, places.slots
    hidden = np.setdiff1d(np.concatenate([changes.keep_hidden, changes.hide]), changes.show)
    if before is None and present is None and not len(hidden):
        return None
    rows = bits.filled(slots) if before is None else bits.grown(before.rows, slots)
    if before is not None:
        bits.put(rows, np.arange(catalog.slots, slots), True)
    bits.put(rows, changes.show, True)
    bits.put(rows, np.concatenate([hidden, changes.dead]), False)
    if bits.count(rows) == slots:
        return None
    leaves = filter_of_bits(bits.filled(catalog.leaves)) if before is None else before.leaves
    return LiveRows("", rows, places.followed(leaves, rows, [step]), rows)


def _next_version(version: str, batch: EditBatch, *found: NDArray[Any]) -> str:
    """xxh3_128, hexadecimal, over the version before, the batch, and what applying it found and made."""
    digest = xxhash.xxh3_128(version.encode())
    digest.update(_encode(batch))
    for array in found:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return str(digest.hexdigest())


def _following(
    view: CatalogView, version: str, arrays: Mapping[str, NDArray[Any]], later: Later, step: EditStep
) -> CatalogView:
    before = view.catalog
    more: dict[str, Any] = {}
    basis = before.basis
    if len(step.came):
        sids = new_sids(arrays, step)
        more["sid_tokens"] = _more_tokens(before.sid_tokens, sids)
        basis = basis if more["sid_tokens"] is before.sid_tokens else version
        if "codebooks" in before.__dict__:
            more["codebooks"] = _more_codes(before, sids)
    after = Catalog(version, before.vocab_size_known, before.templates, arrays, before.scoring, later, basis)
    for name in _OF_COLUMNS if len(step.came) else (*_OF_COLUMNS, *_OF_LEAVES):
        if name in before.__dict__:
            after.__dict__[name] = before.__dict__[name]
    after.__dict__.update(more)
    filters = view.filters.after(after.rows_by_column, step)
    return CatalogView(after, view.filter_bytes, filters)


def new_sids(arrays: Mapping[str, NDArray[Any]], step: EditStep) -> Int32:
    """Of the leaves that came [N, depth]."""
    found: Int32 = arrays["sids"][step.came + np.arange(len(step.came))]
    return found


def _more_tokens(known: NDArray[np.bool_], sids: Int32) -> NDArray[np.bool_]:
    """`Catalog.sid_tokens` with those of new SIDs; the same array where it has them."""
    if sids.max() < len(known) and known[sids].all():
        return known
    longer = np.zeros(max(len(known), int(sids.max()) + 1), np.bool_)
    longer[: len(known)] = known
    longer[sids] = True
    return longer


def _more_codes(before: Catalog, sids: Int32) -> tuple[NDArray[np.int64], ...]:
    """Codebooks with the tokens of new SIDs."""
    if before.scoring.level_tokens:
        return before.codebooks
    return tuple(np.union1d(tokens, sids[:, level]) for level, tokens in enumerate(before.codebooks))
