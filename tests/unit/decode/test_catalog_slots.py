"""Tries and bitmaps in device memory: where they are, who waits for room, and what is let go of."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch
from beam_batches import build_filter, random_trie
from made_catalogs import build_from_arrays
from numpy.typing import NDArray

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")

from decode_worker.engines.catalog_slots import CatalogSlots, SharedBits
from xgr_kernels.beam_select.cuda import words_of
from xgr_kernels.trie import Trie
from xgr_runtime.catalog import CatalogView, Forced, Scoring
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.errors import CatalogError
from xgr_runtime.model.device.device import Event, HostDevice

PIECE = 64  # numbers


class Mark:
    """Has been passed unless its device holds copies back."""

    def __init__(self, device: HeldDevice) -> None:
        self._device = device
        self._recorded = False

    def record(self) -> None:
        self._recorded = True

    def done(self) -> bool:
        if not self._device.held:
            self._recorded = False
        return not self._recorded

    def wait(self) -> None:
        assert not self._device.held, "nobody would ever wake up"


class HeldDevice(HostDevice):
    """With so much free memory; its copies are on their way while it is `held`."""

    def __init__(self, free: float = math.inf) -> None:
        self.free, self.held = free, False

    def event(self) -> Event:
        return Mark(self)

    def free_bytes(self) -> float:
        return self.free


def trie_of(leaves: int, seed: int = 0) -> Trie:
    return random_trie(np.random.default_rng(seed), leaves, 3, 50)


def place(slots: CatalogSlots, trie: Trie) -> int:
    """Turns until it was there."""
    for turn in range(1000):
        if slots.place(trie):
            return turn
    raise AssertionError("it never came")


def read(address: int, count: int) -> NDArray[np.int32]:
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_int32)), (count,))


def assert_there(slots: CatalogSlots, trie: Trie) -> None:
    """By the addresses that launches are given."""
    slot = slots.of(trie)
    for level, (tokens, lo) in enumerate(zip(trie.tokens, trie.lo, strict=True)):
        nodes, p_tokens, p_lo = slot.placed.columns(level)
        assert nodes == len(tokens) and (p_lo == 0) == (level == trie.depth - 1)
        np.testing.assert_array_equal(read(p_tokens, nodes), tokens)
        if p_lo:
            np.testing.assert_array_equal(read(p_lo, nodes + 1), lo)
        assert slot.tokens[level] == (tokens.min(), tokens.max() + 1)


def test_a_trie_comes_in_pieces_beside_one_that_is_read() -> None:
    device, first, second = HeldDevice(), trie_of(200), trie_of(300, 1)
    slots = CatalogSlots(device, first, piece=PIECE)
    assert_there(slots, first)
    device.held = True
    assert not slots.place(second) and not slots.place(second)
    with pytest.raises(StopIteration):
        slots.of(second)
    device.held = False
    place(slots, second)
    assert_there(slots, second)
    assert_there(slots, first)
    assert slots.place(first) and slots.place(second), "both are there"


def test_no_more_than_two_pieces_are_on_their_way() -> None:
    device = HeldDevice()
    slots = CatalogSlots(device, trie_of(50), piece=PIECE)
    device.held, second = True, trie_of(400, 1)
    for _ in range(5):
        assert not slots.place(second)
    left = sum(len(values) for _, _, values in slots.slots[1]._left)
    assert 0 < sum(map(len, (*second.tokens, *second.lo))) - left <= 2 * PIECE


def test_a_version_waits_for_room_until_one_is_let_go() -> None:
    tries = [trie_of(100, seed) for seed in range(4)]
    slots = CatalogSlots(HeldDevice(), tries[0], most=3, piece=PIECE)
    for trie in tries[1:3]:
        place(slots, trie)
    assert not any(slots.place(tries[3]) for _ in range(10))
    slots.keep(tries[:3])
    assert not slots.place(tries[3])
    slots.keep([tries[0], tries[2]])
    place(slots, tries[3])
    for trie in (tries[0], tries[2], tries[3]):
        assert_there(slots, trie)
    assert len(slots.slots) == 3


def test_memory_stays_where_it_is_until_a_trie_needs_more() -> None:
    small, more, most = trie_of(400), trie_of(440, 1), trie_of(900, 2)
    slots = CatalogSlots(HeldDevice(), trie_of(10), most=2, piece=PIECE)
    place(slots, small)
    slot = slots.slots[1]
    before = slot.memory.data_ptr()
    slots.keep([slots.slots[0].trie or small])
    place(slots, more)
    assert slots.of(more) is slot and slot.memory.data_ptr() == before
    slots.keep([slots.slots[0].trie or small])
    place(slots, most)
    assert slot.words >= words_of(most)
    assert_there(slots, most)


def test_what_was_on_its_way_gives_way() -> None:
    device, first, never, wanted = HeldDevice(), trie_of(100), trie_of(120, 1), trie_of(110, 2)
    slots = CatalogSlots(device, first, most=2, piece=PIECE)
    device.held = True
    assert not slots.place(never)
    device.held = False
    place(slots, wanted)
    assert_there(slots, wanted)
    assert len(slots.slots) == 2


@pytest.mark.parametrize(("free", "made"), [(1e9, 3), (100.0, 2)], ids=["much", "little"])
def test_more_than_two_slots_are_made_where_much_memory_is_free(free: float, made: int) -> None:
    slots = CatalogSlots(HeldDevice(free), trie_of(100), most=3, piece=PIECE)
    for seed in (1, 2):
        trie = trie_of(100, seed)
        any(slots.place(trie) for _ in range(100))
    assert len(slots.slots) == made


def test_want_of_memory_is_said_and_the_first_version_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first = trie_of(100)
    slots = CatalogSlots(HeldDevice(), first, piece=PIECE)

    def none(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", none)
        with pytest.raises(CatalogError, match="lower --kv-bytes"):
            slots.place(trie_of(500, 1))
    assert_there(slots, first)
    place(slots, trie_of(500, 1))


def test_versions_that_differ_in_bits_share_a_slot_and_new_leaves_do_not() -> None:
    sids = np.random.default_rng(5).integers(3, 12, (60, 3))
    scoring = Scoring((Forced(40),), (Forced(41),))
    first = CatalogView(build_from_arrays([str(i) for i in range(60)], sids, scoring=scoring))
    hidden = edited(first, EditBatch(hide=("7",)))
    added = edited(hidden, EditBatch(put=(ItemRecord("more", (2, 2, 2)),)))
    slots = CatalogSlots(HeldDevice(), first.trie, piece=PIECE)
    assert slots.place(hidden.trie) and len(slots.slots) == 1
    for view in (first, hidden):
        assert slots.of(view.levels("legal").trie) is slots.of(view.levels("vocab").trie) is slots.slots[0]
    place(slots, added.trie)
    assert_there(slots, added.trie)
    assert slots.of(added.levels("legal").trie) is slots.slots[1]
    slots.keep([added.trie])
    assert slots.slots[0].trie is None


def test_bitmaps_are_copied_once_and_the_oldest_go() -> None:
    draw = np.random.default_rng(3)
    filters = [build_filter(draw.random(700) < 0.5) for _ in range(3)]
    size = 4 * (2 * len(filters[0].bits) + len(filters[0].rank))
    shared = SharedBits(HeldDevice(), 2 * size, piece=PIECE)
    held = []
    for leaves in filters:
        for _ in range(2):
            place = shared.of(leaves)
        held.append(place)
    assert shared.copied == 3 and shared.held_bytes == 2 * size
    for leaves, found in zip(filters, held, strict=True):  # whoever reads the first one still holds it
        words = read(found.columns.bits, 2 * len(leaves.bits)).view(np.uint64)
        np.testing.assert_array_equal(words, leaves.bits)
        np.testing.assert_array_equal(read(found.columns.rank, len(leaves.rank)), leaves.rank.view(np.int32))
    assert shared.of(filters[2]._replace(deny=np.array([5], np.int32))) is held[2], "of the same bits"
    shared.of(filters[0])
    assert shared.copied == 4


def test_bitmaps_of_versions_that_are_gone_make_room() -> None:
    shared = SharedBits(HeldDevice(), 1 << 20, piece=PIECE)
    for seed in range(5):
        shared.of(build_filter(np.random.default_rng(seed).random(700) < 0.5))
    kept = build_filter(np.ones(700, np.bool_))
    place = shared.of(kept)
    assert shared.held_bytes == place.memory.nbytes
    assert not SharedBits(HeldDevice(), 10, piece=PIECE)._kept
    small = SharedBits(HeldDevice(), 10, piece=PIECE)
    small.of(kept)
    assert small.held_bytes == 0, "one that is larger than all that may be kept"
