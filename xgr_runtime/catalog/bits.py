"""Bitmaps: bit i of word i / 64 is number i, 0 past the end. Plain numpy on little-endian machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bits = NDArray[np.uint64]
    Bools = NDArray[np.bool_]
    Numbers = NDArray[np.integer]


def packed(flags: Bools) -> Bits:
    """Flags [N] as bits [ceil(N / 64)]."""
    bits = np.zeros(-(-len(flags) // 64), np.uint64)
    bits.view(np.uint8)[: -(-len(flags) // 8)] = np.packbits(flags, bitorder="little")
    return bits


def unpacked(bits: Bits, count: int) -> Bools:
    """The first `count` flags [count]."""
    return np.unpackbits(bits.view(np.uint8), count=count, bitorder="little").view(np.bool_)


def filled(count: int) -> Bits:
    """`count` bits that are set."""
    bits = np.full(-(-count // 64), ~np.uint64(0))
    if count % 64:
        bits[-1] >>= np.uint64(64 - count % 64)
    return bits


def grown(bits: Bits, count: int) -> Bits:
    """A copy with room for `count` bits; those that come are not set."""
    longer = np.zeros(-(-count // 64), np.uint64)
    longer[: len(bits)] = bits
    return longer


def holds(bits: Bits, numbers: Numbers) -> Bools:
    """Which of these numbers [N] are set."""
    found: Bools = (bits[numbers >> 6] >> (numbers & 63).astype(np.uint64)) & np.uint64(1) == 1
    return found


def put(bits: Bits, numbers: Numbers, flags: Bools | bool) -> None:
    """Sets or clears these numbers [N], each of which comes once."""
    set_ = np.broadcast_to(np.asarray(flags), len(numbers))
    word, mask = numbers >> 6, np.uint64(1) << (numbers & 63).astype(np.uint64)
    np.bitwise_or.at(bits, word[set_], mask[set_])
    np.bitwise_and.at(bits, word[~set_], ~mask[~set_])


def count(bits: Bits) -> int:
    """How many are set."""
    return int(np.bitwise_count(bits).sum())
