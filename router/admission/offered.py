"""How much of the workers' time requests ask for, of late: what a planner of roles goes by."""

import math

SPAN = 10.0  # seconds; what was asked for longer ago counts less and less


class Offered:
    """Seconds of one worker's time per second, for prompts and for beams, as measured costs foresee them."""

    def __init__(self, span: float = SPAN) -> None:
        self._span = span
        self._prefill = self._decode = 0.0  # decayed sums of seconds, at `_at`
        self._at = -math.inf

    def add(self, prefill: float, decode: float, now: float) -> None:
        """One more request was taken, which needs these seconds of either kind of worker."""
        self._decay(now)
        self._prefill += prefill
        self._decode += decode

    def rates(self, now: float) -> tuple[float, float]:
        """For prompts, and for beams."""
        self._decay(now)
        return self._prefill / self._span, self._decode / self._span

    def _decay(self, now: float) -> None:
        if now > self._at:
            left = math.exp((self._at - now) / self._span)
            self._prefill, self._decode, self._at = self._prefill * left, self._decode * left, now
