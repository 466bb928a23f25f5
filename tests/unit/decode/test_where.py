"""A condition in a decode request: evaluated once for a version, with denied leaves inside of it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from made_catalogs import build_from_arrays

from decode_worker import task
from xgr_kernels.trie import LeafFilter
from xgr_runtime.catalog import CatalogView
from xgr_runtime.catalog.edits import EditBatch, edited
from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.arrays import pack
from xgr_runtime.wire.messages import AttemptId, DecodeRequest


@pytest.fixture
def view() -> CatalogView:
    """Leaf n has the items 2n and 2n + 1."""
    sids = [[1 + n // 2 // 10, 20 + n // 2 % 10] for n in range(200)]
    names = [f"{n:03}" for n in range(200)]
    return CatalogView(build_from_arrays(names, sids, attributes=[{"n": n} for n in range(200)]))


def request(view: CatalogView, where: str, deny: list[int]) -> DecodeRequest:
    leaves = pack(np.array(deny, np.int32))
    id = AttemptId(1, 1, 1, 1, 1)
    return DecodeRequest(id, b"\1\0\0\0", 4, 2, "vocab", view.version, None, leaves, 9.0, where=where)


def filter_of(request: DecodeRequest, view: CatalogView) -> LeafFilter:
    found, shared = task.filter_of(request, view)
    assert shared is (request.allow is None and len(found.bits) > 0)  # of the version, or of the condition
    return found


def test_live_leaves_are_those_of_the_condition_without_the_denied(view: CatalogView) -> None:
    for _ in range(2):
        found = filter_of(request(view, "n < 21 OR n = 199", [0, 5]), view)
        alive = set(np.flatnonzero(found.holds(np.arange(100, dtype=np.int32))).tolist()) - set(
            found.deny.tolist()
        )
        assert alive == {1, 2, 3, 4, 6, 7, 8, 9, 10, 99} and found.live(100) == 10
    assert (view.filters.misses, view.filters.hits) == (1, 1)


def test_no_condition_is_no_bitmap(view: CatalogView) -> None:
    assert filter_of(request(view, "", [3]), view).live(100) == 99
    assert view.filters.misses == 0


def test_hidden_and_removed_items_take_their_leaves_with_them(view: CatalogView) -> None:
    """Leaf 0 loses both of its items, leaf 1 one of them, which is all that the condition leaves there."""
    kept = view.filters.left_by("n % 2 = 0")
    after = edited(view, EditBatch(hide=("000", "002"), remove=("001",)))
    found = filter_of(request(after, "", []), after)
    assert found.live(100) == 99 and not found.holds(np.array([0], np.int32))[0]
    found = filter_of(request(after, "n % 2 = 0", [7]), after)
    assert found.live(100) == 97 and not found.holds(np.array([0, 1], np.int32)).any()
    assert after.filters.misses == 1 and view.filters.left_by("n % 2 = 0") is kept
    allowed = msgspec.structs.replace(request(after, "", []), allow=pack(np.array([0, 1, 5], np.int32)))
    assert filter_of(allowed, after).live(100) == 2


def test_a_condition_that_cannot_be_is_refused(view: CatalogView) -> None:
    with pytest.raises(BadRequest, match="no column 'm'"):
        filter_of(request(view, "m < 1", []), view)
