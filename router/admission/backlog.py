"""What one router has under way on one worker, in the order in which the worker serves it. Plain numbers.

Every request is held against all that are under way, so loops here are short and over plain lists.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from math import inf

Rank = tuple[int, float]  # (minus priority, due): sorts like `queue.urgency`


@dataclass(eq=False, slots=True)
class Share:
    """What an accepted request takes of a worker's time."""

    rank: Rank
    seconds: float
    ahead: float  # seconds of work that goes before it
    due: float = inf  # when this worker has to be through with it


@dataclass(eq=False)
class Backlog:
    """The shares of one worker, the most urgent first, of which the first is being worked at."""

    shares: list[Share] = field(default_factory=list)
    since: float = 0.0  # when the worker last was through with something
    _ranks: list[Rank] = field(default_factory=list)  # of the shares
    _seconds: list[float] = field(default_factory=list)

    def ahead(self, rank: Rank, now: float) -> float:
        """Seconds of work before one of this rank."""
        place = bisect_right(self._ranks, rank)
        return sum(self._seconds[:place]) - (self._done(now) if place else 0.0)

    def add(self, share: Share, now: float) -> None:
        """Those behind it now have more before them."""
        if not self.shares:
            self.since = now
        place = bisect_right(self._ranks, share.rank)
        for behind in self.shares[place:]:
            behind.ahead += share.seconds
        self.shares.insert(place, share)
        self._ranks.insert(place, share.rank)
        self._seconds.insert(place, share.seconds)

    def remove(self, share: Share, now: float) -> None:
        """The worker is through with it, or it is wanted no more. A second time changes nothing."""
        if share in self.shares:
            place = self.shares.index(share)
            del self.shares[place], self._ranks[place], self._seconds[place]
            self.since = now

    def would_be_late(self, rank: Rank, seconds: float, now: float, margin: float) -> float:
        """By how many seconds one of this rank makes another late that would be in time without it.

        Only those of the same priority count: whoever has a higher one may make others wait. `margin` is how
        many times longer than foreseen a wait may be.
        """
        place = bisect_right(self._ranks, rank)
        until = sum(self._seconds[:place]) - self._done(now)
        for share in self.shares[place:]:
            if share.rank[0] != rank[0]:
                break
            until += share.seconds
            left, later = share.due - now, (until + seconds) * margin
            if later > left >= until * margin:
                return later - left
        return 0.0

    def _done(self, now: float) -> float:
        """Seconds of the first share that have probably passed."""
        return min(now - self.since, self._seconds[0]) if self.shares else 0.0
