"""When requests are due: drawn beforehand, so that neither a slow server nor a slow client shifts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatArray: TypeAlias = npt.NDArray[np.float64]


def arrivals(
    rate: float, seconds: float, seed: int | Sequence[int] = 0, burstiness: float = 1.0
) -> FloatArray:
    """Due times in [0, seconds), ascending, `rate` per second on average.

    The gaps are gamma distributed with shape `burstiness` and mean 1 / rate: 1 gives a Poisson process, less
    gives bursts (the variance of the gaps is 1 / burstiness times as large), more gives a steadier beat.
    """
    assert rate > 0 and seconds > 0 and burstiness > 0
    draw = np.random.default_rng(seed)
    times = np.empty(0)
    while not len(times) or times[-1] < seconds:
        gaps = draw.gamma(burstiness, 1 / (rate * burstiness), size=64 + int(rate * seconds))
        times = np.concatenate([times, (times[-1] if len(times) else 0.0) + np.cumsum(gaps)])
    return times[times < seconds]
