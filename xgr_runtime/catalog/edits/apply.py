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
from xgr_runtime.catalog.edits.changes import Changes, changes_of
from xgr_runtime.catalog.places import Step
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.views import CatalogView
from xgr_runtime.catalog.where import LiveRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from xgr_runtime.catalog.edits.batch import EditBatch
    from xgr_runtime.catalog.places import Places
    from xgr_runtime.catalog.slots import Later

    Bits = NDArray[np.uint64]
    Int32 = NDArray[np.int32]

_encode = msgspec.msgpack.Encoder().encode
_CACHED = ("columns", "codebooks", "vocab_size_needed", "scored_levels", "relative_levels", "sid_tokens")


def edited(view: CatalogView, batch: EditBatch) -> CatalogView:
    """The next version. Raises CatalogError that names an item and what to change; nothing happened then.

    Arrays by leaf are made anew where a leaf comes, the order on leaves where an item does. Conditions that
    are kept go over: see `KeptFilters.after`.
    """
    catalog = view.catalog
    changes = changes_of(catalog, batch)
    touched = np.unique(np.concatenate([changes.dead, changes.hide, changes.show]))
    step = Step(touched, np.empty(0, np.int32))
    later, places = catalog.later, catalog.places
    present = _present(catalog, changes)
    later = replace(later, present=present, visible=_visible(catalog, places, changes, present, step))
    version = _next_version(catalog.version, batch, touched, places.leaf_of_row[touched])
    return _following(view, version, catalog.arrays, later, step)


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
    catalog: Catalog, places: Places, changes: Changes, present: Bits | None, step: Step
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
    view: CatalogView, version: str, arrays: Mapping[str, NDArray[Any]], later: Later, step: Step
) -> CatalogView:
    before = view.catalog
    after = Catalog(
        version, before.vocab_size_known, before.templates, arrays, before.scoring, later, before.basis
    )
    for name in _CACHED:
        if name in before.__dict__:
            after.__dict__[name] = before.__dict__[name]
    filters = view.filters.after(after.rows_by_column, step)
    return CatalogView(after, view.filter_bytes, filters)
