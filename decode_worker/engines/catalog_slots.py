"""Versions of the catalog in a GPU's memory: slots for tries, and bitmaps that many requests share.

Launches find both by addresses in their request table, which is data: what is captured names no version, and
the searches of one launch may read several. Versions that differ in bits alone have one trie, so one slot.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_kernels.beam_select.cuda import FilterColumns, PlacedTrie, grown, words_of
from xgr_kernels.trie import Int32, LeafFilter, Trie
from xgr_runtime.errors import CatalogError
from xgr_runtime.model.device.device import Device

SLOTS = 6
"""One is in use, one is what edits build on, one is on its way; requests read the others until they end."""

PIECE = 1 << 18
"""Numbers that are copied at once, a MiB: they keep a turn of the worker's loop for a fraction of a ms."""


class StagedCopies:
    """The way into device memory: two pinned pieces, of which one is filled while the other is copied."""

    def __init__(self, device: Device, piece: int = PIECE) -> None:
        self.piece = piece
        self._device = device
        self._staging = [(device.staging(piece, dtype=torch.int32), device.event()) for _ in range(2)]
        self._next = 0

    def send(self, memory: Tensor, at: int, values: Int32) -> bool:
        """Queue a copy of values [n <= piece] to memory[at:]; False: both pieces are still on their way."""
        staging, copied = self._staging[self._next]
        if not copied.done():
            return False
        staging[: len(values)].numpy()[:] = values
        with self._device.apart():
            memory[at : at + len(values)].copy_(staging[: len(values)], non_blocking=True)
            copied.record()
        self._next = 1 - self._next
        return True

    @property
    def there(self) -> bool:
        """Whether all that was sent has arrived."""
        return all(copied.done() for _, copied in self._staging)

    def wait(self) -> None:
        """Until `there`."""
        for _, copied in self._staging:
            copied.wait()


class Slot:
    """Memory for one version's trie, which later versions take over; it becomes larger if one needs it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory = torch.zeros(0, dtype=torch.int32)
        self._left: deque[tuple[int, int, Int32]] = deque()  # level or -1, place and values of what lacks
        self.trie: Trie | None = None
        self.tokens: list[tuple[int, int]] = []  # of each level the smallest, and one behind the largest

    @property
    def words(self) -> int:
        """Numbers that fit into it now."""
        return len(self._memory)

    @property
    def memory(self) -> Tensor:
        """[words] int32: stays where it is until a trie needs more."""
        return self._memory

    def holds(self, trie: Trie) -> bool:
        """Whether it is this trie's, or that of one whose levels are the first of this one's.

        New leaves make new arrays of leaves, so the same array of the last level is the same trie.
        """
        return self.trie is not None and any(trie.tokens[-1] is tokens for tokens in self.trie.tokens)

    def begin(self, trie: Trie) -> None:
        """Become this trie's; what was in it is no more. Raises CatalogError for want of memory."""
        self.trie = None
        needed = words_of(trie)
        if needed > self.words:
            self._memory = torch.zeros(0, dtype=torch.int32)  # before there is memory for more
            self._memory = _taken(self._device, grown(needed))
        self.placed = PlacedTrie(trie, self._memory)
        self._left = deque(
            (number // 2 if number % 2 == 0 else -1, at, values)
            for number, (at, values) in enumerate(self.placed.parts)
            if len(values)
        )
        self.placed.parts = []  # or it would keep what the catalog has let go
        self.tokens = [(1 << 31, 0)] * trie.depth
        self.trie = trie

    def go_on(self, copies: StagedCopies) -> bool:
        """Send what there is room for; whether all of it is on its way."""
        while self._left:
            level, at, values = self._left[0]
            piece = values[: copies.piece]
            if not copies.send(self._memory, at, piece):
                return False
            if level >= 0:
                low, end = self.tokens[level]
                self.tokens[level] = min(low, int(piece.min())), max(end, int(piece.max()) + 1)
            self._left.popleft()
            if len(values) > len(piece):
                self._left.appendleft((level, at + len(piece), values[len(piece) :]))
        return True


class CatalogSlots:
    """Tries in device memory: of versions that are held, and of one on its way."""

    def __init__(self, device: Device, first: Trie, most: int = SLOTS, piece: int = PIECE) -> None:
        """Waits until `first` is there."""
        self._device = device
        self._copies = StagedCopies(device, piece)
        self._most = most
        self._filling: Slot | None = None
        self.slots: list[Slot] = []
        while not self.place(first):
            self._copies.wait()

    def of(self, trie: Trie) -> Slot:
        """Where a trie is that was placed and is kept."""
        return next(slot for slot in self.slots if slot is not self._filling and slot.holds(trie))

    def place(self, trie: Trie) -> bool:
        """Whether it is there: call again until it is. It waits while all slots are read and no more fit.

        A trie that was on its way gives way to another one. Raises CatalogError where it can never be there.
        """
        slot = next((slot for slot in self.slots if slot.holds(trie)), None)
        if slot is None:
            slot = self._begun(trie)
        if slot is self._filling and slot is not None:
            if not slot.go_on(self._copies) or not self._copies.there:
                return False
            self._filling = None
        return slot is not None

    def keep(self, tries: Collection[Trie]) -> None:
        """Only these are read from now on; the one on its way goes on."""
        for slot in self.slots:
            if slot is not self._filling and not any(slot.holds(trie) for trie in tries):
                slot.trie = None

    def _begun(self, trie: Trie) -> Slot | None:
        """A slot that the trie is on its way to; None: there is none now."""
        if self._filling is not None:
            self._filling.trie, self._filling = None, None
        needed = words_of(trie)
        free = sorted((slot for slot in self.slots if slot.trie is None), key=lambda slot: slot.words)
        if not free and self._may_have_another(needed):
            free = [Slot(self._device)]
            self.slots.append(free[0])
        if not free:
            return None
        fitting = [slot for slot in free if slot.words >= needed]
        slot = fitting[0] if fitting else free[-1]
        slot.begin(trie)
        self._filling = slot
        return slot

    def _may_have_another(self, words: int) -> bool:
        """One in use and one to come there must be; more only where much more than that is free."""
        if len(self.slots) < 2:
            return True
        return len(self.slots) < self._most and 2 * 4 * grown(words) <= self._device.free_bytes()


class BitsPlace(NamedTuple):
    """A bitmap in device memory; whoever launches what reads it holds this until the launch is over."""

    memory: Tensor
    columns: FilterColumns


class SharedBits:
    """Bitmaps of versions and of conditions, in device memory; the least recently used go first.

    They are known by their arrays, for each version and each condition has its own.
    """

    def __init__(self, device: Device, most_bytes: int, piece: int = PIECE) -> None:
        self._device = device
        self._copies = StagedCopies(device, piece)
        self._most_bytes = most_bytes
        self._kept: OrderedDict[int, tuple[weakref.ref[NDArray[np.uint64]], BitsPlace]] = OrderedDict()
        self.held_bytes = 0
        self.copied = 0  # bitmaps since the start

    def of(self, leaves: LeafFilter) -> BitsPlace:
        """Where the bits and ranks of a filter are; a moment passes if they are not there yet."""
        key = id(leaves.bits)
        array, place = self._kept.get(key, (None, None))
        if array is not None and place is not None and array() is leaves.bits:
            self._kept.move_to_end(key)
            return place
        place = self._placed(leaves)
        self._keep(leaves.bits, place)
        return place

    def _placed(self, leaves: LeafFilter) -> BitsPlace:
        parts = [np.ascontiguousarray(array).view(np.int32) for array in (leaves.bits, leaves.rank)]
        memory = _taken(self._device, sum(map(len, parts)))
        at = 0
        for values in parts:
            for first in range(0, len(values), self._copies.piece):
                piece = values[first : first + self._copies.piece]
                while not self._copies.send(memory, at + first, piece):
                    self._copies.wait()
            at += len(values)
        self._copies.wait()
        self.copied += 1
        return BitsPlace(memory, FilterColumns(memory.data_ptr(), memory[len(parts[0]) :].data_ptr()))

    def _keep(self, bits: NDArray[np.uint64], place: BitsPlace) -> None:
        for key in [key for key, (array, _) in self._kept.items() if array() is None or array() is bits]:
            self._drop(key)
        self._drop(id(bits))
        if place.memory.nbytes > self._most_bytes:
            return
        self._kept[id(bits)] = weakref.ref(bits), place
        self.held_bytes += place.memory.nbytes
        while self.held_bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: int) -> None:
        if key in self._kept:
            self.held_bytes -= self._kept.pop(key)[1].memory.nbytes


def _taken(device: Device, words: int) -> Tensor:
    """Device memory [words] int32. Raises CatalogError where there is none."""
    try:
        with device.apart():
            return torch.empty(words, dtype=torch.int32, device=device.where)
    except torch.OutOfMemoryError:
        raise CatalogError(
            f"the device has no {4 * words / 2**20:.0f} MiB left for it: lower --kv-bytes or --max-rows, and "
            "restart the worker"
        ) from None
