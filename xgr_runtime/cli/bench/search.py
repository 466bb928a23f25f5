"""The highest rate that keeps the promise: doubling until one does not, then bisection, in few runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xgr_runtime.cli.bench.settings import SearchSettings


class RateSearch:
    """Ask `next_rate`, measure there, `note` how it went; over when there is no next rate."""

    def __init__(self, settings: SearchSettings) -> None:
        self._settings = settings
        self.best: float | None = None  # the highest rate known to be good
        self._bad: float | None = None  # the lowest known to be bad
        self._runs = 0

    def next_rate(self) -> float | None:
        """Requests per second to try next; None once the answer is close enough, or will not be."""
        if self._runs >= self._settings.most_runs:
            return None
        if self.best is None:
            rate = self._settings.start if self._bad is None else self._bad / 2
            return rate if rate >= self._settings.lowest else None
        if self._bad is None:
            return self.best * 2
        return None if self._bad / self.best <= self._settings.close else (self._bad + self.best) / 2

    def note(self, rate: float, good: bool) -> None:
        """How the run at `rate` went."""
        self._runs += 1
        if good:
            self.best = max(rate, self.best or 0.0)
        else:
            self._bad = min(rate, self._bad or rate)
