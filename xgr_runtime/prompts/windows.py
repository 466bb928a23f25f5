"""Which items of a history a prompt shows: the newest that fit, begun where the last prompt began."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_MIX = np.uint64(0x9E3779B97F4A7C15)


def newest(leaves: NDArray[np.integer], most: int | None, step: int) -> NDArray[np.integer]:
    """The newest `most` of a history's leaves [n], oldest first, less some of the oldest where `step` > 1.

    A window that moves by one item with each request begins anew each time, and nothing of its KV can be
    used again. So it begins at that one of its oldest `step` items whose hash is smallest, which is the same
    item for several requests, also where a client sends no more items than the window holds (winnowing:
    Schleimer, Wilkerson and Aiken, 2003).
    """
    if most is None or len(leaves) < most:
        return leaves
    window = leaves[len(leaves) - most :]
    return window[_begin(window[: min(step, most)]) :] if step > 1 else window


def _begin(oldest: NDArray[np.integer]) -> int:
    """The place of the smallest hash, the last of several."""
    hashes = oldest.astype(np.uint64) * _MIX
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(32)
    return len(hashes) - 1 - int(np.argmin(hashes[::-1]))


def largest(upper: int, fits: Callable[[int], bool], guess: int) -> int:
    """The largest count from 0 to `upper` that fits, where fewer always fit if more do; -1 if none does.

    `guess` is tried first, and then counts farther and farther from it.
    """
    low, high, reach = -1, upper + 1, 1  # low fits, high does not
    probe = min(max(guess, 0), upper)
    while high - low > 1:
        if fits(probe):
            low = probe
        else:
            high = probe
        if high > upper:
            probe = min(low + reach, upper)
        elif low < 0:
            probe = max(high - reach, 0)
        else:
            probe = (low + high) // 2
        reach *= 2
    return low
