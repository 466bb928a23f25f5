"""How much longer than foreseen requests take: a quantile of observed over predicted, learned online."""

import math

_QUANTILE = 0.99  # of answers that the margin covers
_STEP = 0.05  # by which its logarithm moves at most
_LEAST = math.log(1.2)  # a worker with a queue is busy all the same, so that a little margin costs nothing
_MOST = math.log(4.0)
_HALF_LIFE = 30.0  # seconds in which it forgets half: nobody may be refused for ever by what once was


class Margin:
    """Follows a quantile of ratios: up by a step for each above it, down by a 99th of a step for others."""

    def __init__(self, start: float = 1.3) -> None:
        self._log = math.log(start)
        self._at = -math.inf

    def value(self, now: float) -> float:
        """What to multiply a prediction by; at least 1.2."""
        if self._at == -math.inf:
            return math.exp(self._log)
        return math.exp(max(_LEAST, self._log * 0.5 ** ((now - self._at) / _HALF_LIFE)))

    def observe(self, ratio: float, now: float) -> None:
        """An answer took `ratio` times as long as predicted; infinity: it never came."""
        value = self.value(now)
        step = _STEP * _QUANTILE if ratio > value else -_STEP * (1 - _QUANTILE)
        self._log, self._at = min(max(math.log(value) + step, _LEAST), _MOST), now
